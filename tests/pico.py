"""A pico Wan on disk: two blocks, width 32, real names. A source, a target distilled from it, and a LoRA."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

WIDTH, FFN, BLOCKS, RANK = 32, 64, 2, 4
LINEARS = {
    **{f"{kind}.{name}": (WIDTH, WIDTH) for kind in ("self_attn", "cross_attn") for name in "qkvo"},
    "ffn.0": (FFN, WIDTH),
    "ffn.2": (WIDTH, FFN),
}
LAYERS = {f"blocks.{n}.{name}": shape for n in range(BLOCKS) for name, shape in LINEARS.items()}


@dataclass(frozen=True)
class Pico:
    """Three files that belong together, and the folder they lie in."""

    folder: Path
    source: Path
    target: Path
    lora: Path


def weights(
    seed: int,
    *,
    width: int = WIDTH,
    ffn: int = FFN,
    blocks: int = BLOCKS,
    in_channels: int = 16,
    text: int = 48,
    frequency: int = 16,
    output: int = 64,
    image: int | None = None,
) -> dict[str, Tensor]:
    """Every parameter of a small Wan by its original name; with `image`, of an image-to-video one."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    found = {
        "patch_embedding.weight": make(width, in_channels, 1, 2, 2),
        "patch_embedding.bias": make(width),
        "head.modulation": make(1, 2, width),
    }
    sizes = {
        "text_embedding.0": (width, text),
        "text_embedding.2": (width, width),
        "time_embedding.0": (width, frequency),
        "time_embedding.2": (width, width),
        "time_projection.1": (6 * width, width),
        "head.head": (output, width),
    }
    for block in range(blocks):
        found[f"blocks.{block}.modulation"] = make(1, 6, width)
        found[f"blocks.{block}.norm3.weight"] = make(width)
        found[f"blocks.{block}.norm3.bias"] = make(width)
        for kind in ("self_attn", "cross_attn"):
            found[f"blocks.{block}.{kind}.norm_q.weight"] = make(width)
            found[f"blocks.{block}.{kind}.norm_k.weight"] = make(width)
            sizes |= {f"blocks.{block}.{kind}.{name}": (width, width) for name in "qkvo"}
        sizes |= {f"blocks.{block}.ffn.0": (ffn, width), f"blocks.{block}.ffn.2": (width, ffn)}
        if image is not None:
            found[f"blocks.{block}.cross_attn.norm_k_img.weight"] = make(width)
            sizes |= {f"blocks.{block}.cross_attn.{name}": (width, width) for name in ("k_img", "v_img")}
    if image is not None:
        sizes |= {"img_emb.proj.1": (image, image), "img_emb.proj.3": (width, image)}
        found |= {f"img_emb.proj.0.{kind}": make(image) for kind in ("weight", "bias")}
        found |= {f"img_emb.proj.4.{kind}": make(width) for kind in ("weight", "bias")}
    for name, shape in sizes.items():
        found[f"{name}.weight"] = make(*shape)
        found[f"{name}.bias"] = make(shape[0])
    return found


def distilled(source: dict[str, Tensor], seed: int, drift: float = 0.2) -> dict[str, Tensor]:
    """The same model after a distillation that moved every weight by a share of its norm."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, weight in source.items():
        noise = torch.randn(weight.shape, generator=generator)
        moved[name] = weight + drift * weight.norm() / noise.norm() * noise
    return moved


def lora(
    seed: int, *, width: int = WIDTH, ffn: int = FFN, rank: int = RANK, layers: dict[str, tuple[int, int]] | None = None
) -> dict[str, Tensor]:
    """Factors in the commonest spelling, for every linear layer of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {WIDTH: width, FFN: ffn}
    found = {}
    for name, (rows, columns) in (layers or LAYERS).items():
        m, n = sizes.get(rows, rows), sizes.get(columns, columns)
        found[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(rank, n, generator=generator) / n**0.5
        found[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(m, rank, generator=generator) * 0.1
    return found


def write(folder: Path) -> Pico:
    """Write all three files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Pico(folder, folder / "source.safetensors", folder / "target.safetensors", folder / "style.safetensors")
    for path, content in zip((made.source, made.target, made.lora), _contents(), strict=True):
        path.write_bytes(content)
    return made


@functools.cache
def _contents() -> tuple[bytes, bytes, bytes]:
    """Of the three files, which are the same for every test."""
    source = weights(1)
    return save(source), save(distilled(source, 2)), save(lora(3))
