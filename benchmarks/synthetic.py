"""Real-shaped Wan pairs on disk: a source, a target that drifted from it, and LoRAs, without any real weights.

    python benchmarks/synthetic.py OUT --size 1.3B --blocks 2
    python benchmarks/synthetic.py OUT --size 14B --blocks 40 --whole --distinct 1

Every linear weight is `H_m diag(S) H_n` with `H` fast orthogonal transforms (signs, permutation, Hartley), so
its singular values are known without an SVD and a layer costs a few FFTs. Spectrum, drift and LoRA imitate
what is known of Wan2.1-1.3B and its distilled variants: singular values from 8 to 0.07 with most of them
on a slope, a drift of 3 to 10 % of the weight that leans on the head rows and columns, a LoRA of about 1 %.
Written layer by layer; memory stays at a few layers whatever the number of blocks. `--whole` adds the layers outside
the blocks. With `--distinct` only so many blocks are made, and the others are these with their rows moved on: quick.
"""

import argparse
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save_file
from torch import Tensor

from matrices import lora_factors, weight_pair

VERSION = 1
"""Raised whenever the same call would write other tensors."""


@dataclass(frozen=True)
class Size:
    """Dimensions of a Wan model."""

    width: int
    ffn: int


SIZES = {"pico": Size(96, 160), "1.3B": Size(1536, 8960), "14B": Size(5120, 13824)}

DIFFUSERS = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "norm3": "norm2",
    "modulation": "scale_shift_table",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
}


@dataclass(frozen=True)
class Pair:
    """Files that belong together."""

    source: Path
    target: Path
    loras: tuple[Path, ...]


def linears(size: Size) -> dict[str, tuple[int, int]]:
    """Linear layers of one block by their original names, with (out, in)."""
    width = size.width
    square = {f"{kind}.{name}": (width, width) for kind in ("self_attn", "cross_attn") for name in "qkvo"}
    return square | {"ffn.0": (size.ffn, width), "ffn.2": (width, size.ffn)}


def layers(size: Size, blocks: int) -> dict[str, tuple[int, int]]:
    """Linear layers of all blocks."""
    return {f"blocks.{n}.{name}": shape for n in range(blocks) for name, shape in linears(size).items()}


def seeded(*parts: object) -> torch.Generator:
    """A generator that depends on what it is for, not on what was drawn before it."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, parts)).encode()))


def write_pair(
    folder: Path,
    size: str,
    blocks: int,
    *,
    naming: str = "original",
    rank: int = 32,
    loras: int = 2,
    seed: int = 0,
    whole: bool = False,
    distinct: int | None = None,
    device: str = "cpu",
) -> Pair:
    """Write source, target and different LoRAs (all bf16) into a folder; what is there already is kept.

    Args:
        size: a key of `SIZES`. naming: `original` or `diffusers` spelling of the checkpoints' keys; the
            LoRAs are always in `diffusion_model.<original name>` spelling. whole: with the embeddings and projections
            of texts and times. distinct: blocks that are made; a further one is an earlier one with its rows moved on
            (all are made without it; with it, these blocks are held in memory). device: where the weights are made;
            their last bits depend on it.
    """
    facts = {
        "version": VERSION,
        "size": size,
        "blocks": blocks,
        "naming": naming,
        "rank": rank,
        "loras": loras,
        "seed": seed,
        "whole": whole,
        "distinct": distinct,
    }
    pair = Pair(
        folder / "source.safetensors",
        folder / "target.safetensors",
        tuple(folder / f"lora-{number + 1}.safetensors" for number in range(loras)),
    )
    manifest = folder / "manifest.json"
    if manifest.exists() and json.loads(manifest.read_text(encoding="utf-8")) == facts:
        return pair
    folder.mkdir(parents=True, exist_ok=True)
    dims = SIZES[size]
    for number, path in enumerate(pair.loras):
        factors = {}
        for name, (m, n) in layers(dims, blocks).items():
            B, A = lora_factors(m, n, rank, seeded(seed, "lora", number, name))
            factors[f"diffusion_model.{name}.lora_A.weight"] = A.bfloat16()
            factors[f"diffusion_model.{name}.lora_B.weight"] = B.bfloat16()
        save_file(factors, path)
    shapes = _shapes(dims, blocks, naming, whole)
    with Bf16Writer(pair.source, shapes) as source, Bf16Writer(pair.target, shapes) as target:
        for name, before, after in _tensors(dims, blocks, naming, seed, device, whole, distinct):
            source.add(name, before)
            target.add(name, after)
    manifest.write_text(json.dumps(facts), encoding="utf-8")
    return pair


def _small(size: Size, blocks: int, whole: bool) -> dict[str, tuple[int, ...]]:
    """Everything that is no linear weight of a block, by original names; embeddings only of a whole model."""
    width = size.width
    found: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (width, 16, 1, 2, 2),
        "patch_embedding.bias": (width,),
        "head.head.weight": (64, width),
        "head.head.bias": (64,),
        "head.modulation": (1, 2, width),
    }
    embeddings = {
        "text_embedding.0": (width, 4096),
        "text_embedding.2": (width, width),
        "time_embedding.0": (width, 256),
        "time_embedding.2": (width, width),
        "time_projection.1": (6 * width, width),
    }
    for name, shape in embeddings.items() if whole else ():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for block in range(blocks):
        stem = f"blocks.{block}"
        found[f"{stem}.modulation"] = (1, 6, width)
        found |= {f"{stem}.norm3.{kind}": (width,) for kind in ("weight", "bias")}
        for attention in ("self_attn", "cross_attn"):
            found |= {f"{stem}.{attention}.norm_{which}.weight": (width,) for which in "qk"}
        found |= {f"{stem}.{name}.bias": (shape[0],) for name, shape in linears(size).items()}
    return found


def _spelled(name: str, naming: str) -> str:
    if naming == "original":
        return name
    stem, block, rest = "", "", name
    if name.startswith("blocks."):
        stem, block, rest = name.split(".", 2)
    inner, _, suffix = rest.rpartition(".")
    if suffix not in ("weight", "bias"):
        inner, suffix = rest, ""
    return ".".join(part for part in (stem, block, DIFFUSERS.get(inner, inner), suffix) if part)


def _shapes(size: Size, blocks: int, naming: str, whole: bool) -> dict[str, tuple[int, ...]]:
    big = {f"{name}.weight": shape for name, shape in layers(size, blocks).items()}
    return {_spelled(name, naming): shape for name, shape in (_small(size, blocks, whole) | big).items()}


def _tensors(
    size: Size, blocks: int, naming: str, seed: int, device: str, whole: bool, distinct: int | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, shape in _small(size, blocks, whole).items():
        before = torch.randn(shape, generator=seeded(seed, name)) * 0.02
        yield _spelled(name, naming), before, before * 1.01
    kinds = list(linears(size))
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for number, (name, (m, n)) in enumerate(layers(size, blocks).items()):
        round_, first = divmod(number, len(kinds) * (distinct or blocks))
        if round_:
            like = f"blocks.{first // len(kinds)}.{kinds[first % len(kinds)]}"
            source, target = (weight.roll(round_, 0) for weight in made[like])
        else:
            drift = 0.03 + 0.07 * (number * 7 % 10) / 9  # 3 to 10 %, in no order
            source, target = weight_pair(m, n, drift, seeded(seed, name), device=device)
            if distinct is not None:
                made[name] = source.bfloat16(), target.bfloat16()
        yield _spelled(f"{name}.weight", naming), source, target


class Bf16Writer:
    """A safetensors file of bfloat16 tensors, written one tensor after the other without holding them."""

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        """Lay out the header; tensors must then be added in the order of `shapes`."""
        self._path, self._part = path, path.with_suffix(".partial")
        self._waiting = list(shapes.items())
        header, offset = {}, 0
        for name, shape in shapes.items():
            end = offset + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file = self._part.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor, rounded to bfloat16."""
        expected = self._waiting.pop(0)
        if expected != (name, tuple(tensor.shape)):
            raise ValueError(f"{name} {tuple(tensor.shape)} where {expected} was announced")
        self._file.write(tensor.bfloat16().contiguous().cpu().view(torch.int16).numpy().data)

    def __enter__(self) -> "Bf16Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and not self._waiting:
            os.replace(self._part, self._path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--naming", choices=("original", "diffusers"), default="original")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--loras", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="with the layers outside the blocks")
    parser.add_argument("--distinct", type=int, help="make only so many blocks; the others are like them")
    args = parser.parse_args()
    pair = write_pair(
        args.out,
        args.size,
        args.blocks,
        naming=args.naming,
        rank=args.rank,
        loras=args.loras,
        seed=args.seed,
        whole=args.whole,
        distinct=args.distinct,
    )
    print(*(pair.source, pair.target, *pair.loras), sep="\n")


if __name__ == "__main__":
    main()
