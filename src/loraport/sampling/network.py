"""The network of a diffusers folder, also where its weights are stored in a way that diffusers does not read.

Diffusers would take the stored numbers of a quantised weight without their scales, and say no more than that there are
unexpected keys. A checkpoint as other programs have it, with the names of the original code or in GGUF, may lie beside
the configuration too.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraport.containers.tensors import read_float
from loraport.errors import FileError, LoraportError
from loraport.models.checkpoint import Checkpoint, open_checkpoint
from loraport.models.family import Family

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel


def load_network(folder: Path, dtype: torch.dtype) -> "WanTransformer3DModel":
    """Load a transformer for sampling, its weights as numbers in one dtype.

    Args:
        folder: of a pipeline or of the transformer itself.
        dtype: of the weights in memory.

    Raises:
        FileError: weights that are read here, of which some parameters are missing. OSError: as diffusers.
    """
    from diffusers import WanTransformer3DModel

    inside = "transformer" if (folder / "transformer").is_dir() else None
    model = _read_here(folder)
    if model is None:
        return WanTransformer3DModel.from_pretrained(folder, subfolder=inside, torch_dtype=dtype)
    network = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder, subfolder=inside)).to(dtype)
    family = model.architecture.family
    state = {diffusers_name(family, name): read_float(ref).to(dtype) for name, ref in model.tensors.items()}
    missing, _ = network.load_state_dict(state, strict=False)
    if missing:
        raise FileError(
            "the model could not be loaded: parameters are missing",
            where=str(folder),
            values=f"{len(missing)}, e.g. {', '.join(missing[:3])}",
        )
    return network


def diffusers_name(family: Family, parameter: str) -> str:
    """The name that diffusers' network has for a canonical parameter."""
    module, _, last = parameter.rpartition(".")
    if last in ("weight", "bias"):
        return f"{family.spell(module, 'diffusers')}.{last}"
    return family.spell(parameter, "diffusers")


def _read_here(folder: Path) -> Checkpoint | None:
    """The weights of a folder, where diffusers would not take them for what they are."""
    try:
        model = open_checkpoint(folder)
    except LoraportError:
        return None  # what it is that diffusers may read and this program does not, diffusers says
    strange = any(ref.codec != "raw" or ref.container == "gguf" for ref in model.tensors.values())
    return model if strange or model.naming != "diffusers" else None
