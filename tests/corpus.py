"""Files made of key sets as trainers write them."""

from pathlib import Path

import torch

from makers import LoraFile
from trainer_keys import CORPUS

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


def write(name: str, folder: Path, keys: dict | None = None) -> Path:
    """A LoRA file with the keys of an entry, or with others in its manner, and random numbers."""
    entry = CORPUS[name]
    generator = torch.Generator().manual_seed(0)
    dtype = _DTYPES.get(entry.get("dtype"), torch.float32)
    tensors = {}
    for key, shape in (entry["keys"] if keys is None else keys).items():
        if key.endswith((".alpha", ".lora_alpha")):
            tensors[key] = torch.full(shape, entry["alpha"])
        elif key.endswith(".on_input"):
            tensors[key] = torch.zeros(shape, dtype=torch.int64)
        elif key.endswith(".lora_rank"):
            tensors[key] = torch.full(shape, 4, dtype=torch.int32)
        else:
            tensors[key] = torch.randn(shape, generator=generator).to(dtype)
    return LoraFile(tensors, entry.get("metadata", {}), entry.get("config")).write(folder)
