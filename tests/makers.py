"""Small LoRAs and models with real names, made here; the names are written out independently of the package."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pico
from loraport.adapters.parse import open_adapter
from loraport.containers.tensors import read_tensor
from loraport.models.checkpoint import Checkpoint
from loraport.models.families import families, recognised
from loraport.models.keymap import _owners, keymap_of

WIDTH, FFN, TEXT, FREQUENCY, OUTPUT, IMAGE, BLOCKS = 24, 48, 16, 8, 16, 20, 2

# original -> (diffusers, FastVideo-internal), inside a block and outside.
BLOCK = {
    "self_attn.q": ("attn1.to_q", "to_q"),
    "self_attn.k": ("attn1.to_k", "to_k"),
    "self_attn.v": ("attn1.to_v", "to_v"),
    "self_attn.o": ("attn1.to_out.0", "to_out"),
    "cross_attn.q": ("attn2.to_q", "attn2.to_q"),
    "cross_attn.k": ("attn2.to_k", "attn2.to_k"),
    "cross_attn.v": ("attn2.to_v", "attn2.to_v"),
    "cross_attn.o": ("attn2.to_out.0", "attn2.to_out"),
    "ffn.0": ("ffn.net.0.proj", "ffn.fc_in"),
    "ffn.2": ("ffn.net.2", "ffn.fc_out"),
}
OUTSIDE = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
SIZES = {
    "text_embedding.0": (WIDTH, TEXT),
    "text_embedding.2": (WIDTH, WIDTH),
    "time_embedding.0": (WIDTH, FREQUENCY),
    "time_embedding.2": (WIDTH, WIDTH),
    "time_projection.1": (6 * WIDTH, WIDTH),
    "head.head": (OUTPUT, WIDTH),
}
Factors = dict[str, tuple[Tensor, Tensor]]
PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")


def block_shape(name: str) -> tuple[int, int]:
    """(out, in) of a linear layer of a block."""
    return {"ffn.0": (FFN, WIDTH), "ffn.2": (WIDTH, FFN)}.get(name, (WIDTH, WIDTH))


def layers(*, outside: bool = False, image: bool = False) -> dict[str, tuple[int, int]]:
    """Linear layers of the pico model by original name."""
    names = [*BLOCK, *(["cross_attn.k_img", "cross_attn.v_img"] if image else [])]
    found = {f"blocks.{n}.{name}": block_shape(name) for n in range(BLOCKS) for name in names}
    return found | (SIZES if outside else {})


def diffusers_name(name: str) -> str:
    """The diffusers spelling of an original layer name."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, block, rest = name.split(".", 2)
    image = {"cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj"}
    return f"blocks.{block}.{image.get(rest) or BLOCK[rest][0]}"


def fastvideo_name(name: str) -> str:
    """The spelling that FastVideo uses inside."""
    _, block, rest = name.split(".", 2)
    return f"blocks.{block}.{BLOCK[rest][1]}"


def flat(name: str) -> str:
    """Dots as underscores."""
    return name.replace(".", "_")


def factors(seed: int = 0, rank: int = 4, *, outside: bool = False, image: bool = False) -> Factors:
    """Random B and A for every layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator) / n**0.5)
        for name, (m, n) in layers(outside=outside, image=image).items()
    }


def deltas(made: Factors) -> dict[str, Tensor]:
    """The updates, in float64."""
    return {name: b.double() @ a.double() for name, (b, a) in made.items()}


def model(seed: int = 0, *, image: bool = False, in_channels: int = 4, blocks: int = BLOCKS) -> dict[str, Tensor]:
    """All parameters of a pico Wan by original name, in the sizes of this room."""
    return pico.weights(
        seed, width=WIDTH, ffn=FFN, blocks=blocks, in_channels=in_channels, text=TEXT, frequency=FREQUENCY,
        output=OUTPUT, image=IMAGE if image else None,
    )  # fmt: skip


def forget_families() -> None:
    """Have the yaml files of families read anew when they are needed next."""
    for kept in (families, recognised, keymap_of, _owners):
        kept.cache_clear()


def check_model(found: Checkpoint, state: dict[str, Tensor]) -> None:
    """A checkpoint was opened as the model with these parameters, all of them and with their numbers."""
    assert found.tensors.keys() == state.keys()
    assert found.unknown == ()
    assert found.missing == ()
    for name in ("blocks.1.cross_attn.o.weight", "blocks.0.modulation", "blocks.0.norm3.bias", "head.head.weight"):
        assert torch.equal(read_tensor(found.tensors[name]), state[name]), name


@dataclass
class LoraFile:
    """What goes into a file, and beside it."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict | None = None

    def write(self, folder: Path, name: str = "lora.safetensors") -> Path:
        """Write it all into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        if name.endswith(".pt"):
            torch.save(self.tensors, folder / name)
        else:
            save_file(
                {k: t.contiguous() for k, t in self.tensors.items()}, folder / name, metadata=self.metadata or None
            )
        if self.config is not None:
            (folder / "adapter_config.json").write_text(json.dumps(self.config), encoding="utf-8")
        return folder / name


def spell(
    made: Factors,
    prefix: str,
    name: Callable[[str], str],
    down: str,
    up: str,
    *,
    alpha: float | None = None,
    alpha_key: str = ".alpha",
    alpha_dtype: torch.dtype = torch.float32,
    alpha_shape: tuple[int, ...] = (),
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Factors under the keys of a dialect; `scale` is divided out of B, so that the stated alpha puts it back."""
    found = {}
    for layer, (b, a) in made.items():
        stem = prefix + name(layer)
        found[stem + down], found[stem + up] = a.clone(), b / scale
        if alpha is not None:
            found[stem + alpha_key] = torch.full(alpha_shape, alpha).to(alpha_dtype)
    return found


def same(name: str) -> str:
    """The original name."""
    return name


def universal() -> dict[str, Tensor]:
    """A LoRA in the commonest spelling."""
    return spell(factors(), "diffusion_model.", same, *PEFT)


def peft_config(**more) -> dict:
    """A configuration as PEFT writes it beside the file, for factors of rank 4."""
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, **more}


def refusal(
    tensors: dict, folder: Path, model, error: type, *, metadata: dict | None = None, config: dict | None = None
) -> str:
    """What is said where a LoRA is refused; the file is named in it."""
    path = LoraFile(tensors, metadata or {}, config).write(folder)
    with pytest.raises(error) as caught:
        open_adapter(path, model)
    assert str(path.parent) in caught.value.message
    return caught.value.message
