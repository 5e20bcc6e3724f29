"""ComfyUI's mxfp8 and nvfp4: small floating-point numbers, with a scale for every few numbers of a row.

mxfp8 (OCP Microscaling Formats 1.0): e4m3 numbers, and for each 32 a power of two, stored as its exponent. nvfp4: e2m1
numbers, two in a byte with the first in the upper half, for each 16 an e4m3 scale, and one float32 scale for all. The
scales of the blocks lie as cuBLAS wants them, in tiles of 128 rows and 4 blocks, filled up with zeros ("1D Block
Scaling Factors Layout" in its documentation). Other programs may store both without tiles, or with the halves of a byte
exchanged, and cannot be told from the shapes; so only what ComfyUI's settings call by name is read.
"""

from collections.abc import Mapping
from math import prod, sqrt
from typing import Any

import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor

from loraport.containers import dtypes
from loraport.containers.codecs.base import Claim, logical
from loraport.containers.stored import Group, TensorRef

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CHUNK = 2**22  # numbers that are looked up at once
# Relative rounding error of Gaussian weights, which is that of ComfyUI's encoder (comfy-kitchen 0.2.40); measured.
_NVFP4_ERROR = 0.095


class Mxfp8:
    """e4m3 with a power of two for each 32 numbers."""

    name = "mxfp8"

    def claim(self, group: Group, settings: Mapping[str, Mapping[str, Any]]) -> Claim:
        """Every weight that ComfyUI's settings call mxfp8."""
        claim = Claim()
        for module in _modules(self.name, settings, group):
            weight, scale = group[f"{module}.weight"], group.get(f"{module}.weight_scale")
            name, companions = f"{self.name} with other scales than ComfyUI's", {}
            if _tiled(weight.shape, 32, scale, ("U8", "F8_E8M0")) and weight.dtype == "F8_E4M3":
                assert scale is not None
                name, companions = self.name, {"scale": logical(scale, Exponents.name, {})}
            claim.weights[weight.key] = logical(weight, name, companions)
            claim.used.update({weight.key, f"{module}.weight_scale"} & group.keys())
        return claim

    def decode(
        self, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """stored * 2^exponent, in float32."""
        return _scaled(stored.float(), untiled(companions["scale"], ref), 32)

    def rounding_floor(self, ref: TensorRef) -> float:
        """That of e4m3: powers of two move numbers without making them coarser."""
        return dtypes.rounding_floor("F8_E4M3")

    def refusal(self, ref: TensorRef) -> str | None:
        """None: what does not fit was claimed under another name."""
        return None


class Nvfp4:
    """e2m1 with an e4m3 scale for each 16 numbers, and one scale for all."""

    name = "nvfp4"

    def claim(self, group: Group, settings: Mapping[str, Mapping[str, Any]]) -> Claim:
        """Every weight that ComfyUI's settings call nvfp4; what only has the scales is named so."""
        claim = Claim()
        marked = {key.removesuffix(".weight_scale_2"): None for key in group if key.endswith(".weight_scale_2")}
        for module in {**_modules(self.name, settings, group), **marked}:
            key = f"{module}.weight"
            parts = {suffix: group.get(key + suffix) for suffix in ("", "_scale", "_scale_2")}
            weight, scale, whole = parts.values()
            claim.used.update({key, f"{key}_scale", f"{key}_scale_2"} & group.keys())
            if settings.get(module, {}).get("format") != self.name:
                some = weight or whole
                assert some is not None
                claim.weights[key] = logical(some, "nvfp4 without ComfyUI's settings", {})
                continue
            assert weight is not None
            ref = logical(weight, f"{self.name} with other scales than ComfyUI's", {})
            if weight.dtype == "U8" and len(weight.shape) == 2 and whole is not None and whole.dtype == "F32":
                shape = (weight.shape[0], 2 * weight.shape[1])
                if prod(whole.shape) == 1 and _tiled(shape, 16, scale, ("U8", "F8_E4M3")):
                    assert scale is not None
                    scale = logical(scale, SmallFloats.name, {}) if scale.dtype == "U8" else scale
                    ref = logical(weight, self.name, {"scale": scale, "scale_2": whole}, shape)
            claim.weights[key] = ref
        return claim

    def decode(
        self, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """number * scale of its block * scale of the tensor, in float32."""
        numbers = torch.tensor([*_E2M1, *(-number for number in _E2M1)])
        weight = torch.empty(ref.shape)
        rows = max(_CHUNK // max(ref.shape[1], 1), 1)
        for part, packed in zip(weight.split(rows), stored.split(rows), strict=True):
            part[:, 0::2] = numbers[(packed >> 4).int()]
            part[:, 1::2] = numbers[(packed & 15).int()]
        return _scaled(weight, untiled(companions["scale"], ref, 16) * companions["scale_2"].reshape(()), 16)

    def rounding_floor(self, ref: TensorRef) -> float:
        """Measured on Gaussian weights."""
        return sqrt(2.0) * _NVFP4_ERROR

    def refusal(self, ref: TensorRef) -> str | None:
        """None: what does not fit was claimed under another name."""
        return None


class _ScaleBytes:
    """Scales whose number format torch may not have; a part of a weight, never one by themselves."""

    name = ""

    def claim(self, group: Group, settings: Mapping[str, Mapping[str, Any]]) -> Claim:
        """Nothing: they come as companions."""
        return Claim()

    def rounding_floor(self, ref: TensorRef) -> float:
        """None of its own."""
        return 0.0

    def refusal(self, ref: TensorRef) -> str | None:
        """None."""
        return None


class Exponents(_ScaleBytes):
    """e8m0: byte b is 2^(b - 127), and 255 is no number."""

    name = "e8m0"

    def decode(
        self, ref: TensorRef, stored: UInt8[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """The powers of two."""
        powers = torch.tensor([2.0 ** (byte - 127) for byte in range(255)] + [float("nan")])
        return powers[stored.int()]


class SmallFloats(_ScaleBytes):
    """e4m3 in a tensor of bytes, as older ComfyUI wrote it."""

    name = "e4m3 in bytes"

    def decode(
        self, ref: TensorRef, stored: UInt8[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """The numbers."""
        return stored.view(torch.float8_e4m3fn).float()


def untiled(scale: Float32[Tensor, "..."], ref: TensorRef, size: int = 32) -> Float32[Tensor, "rows blocks"]:
    """The scales of a weight's blocks in the order of its rows, of `ref.rows` only where these are asked for.

    Within a tile of 128 rows and 4 blocks, the scale of row r and block c lies at 16 (r mod 32) + 4 (r div 32) + c;
    tiles follow each other along the rows of the weight.

    Args:
        scale: as stored, tiles filled up.
        ref: the weight.
        size: of a block.
    """
    blocks = ref.shape[1] // size
    tiles = -(-blocks // 4)
    whole = scale.reshape(-1, tiles, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(-1, 4 * tiles)[:, :blocks]
    ranges = ref.rows if ref.rows is not None else ((0, ref.shape[0]),)
    return torch.cat([whole[start:end] for start, end in ranges])


def _scaled(weight: Float32[Tensor, "m n"], scale: Float32[Tensor, "m b"], size: int) -> Float32[Tensor, "m n"]:
    weight.view(*scale.shape, size).mul_(scale.unsqueeze(-1))
    return weight


def _modules(name: str, settings: Mapping[str, Mapping[str, Any]], group: Group) -> dict[str, None]:
    return {
        module: None for module, given in settings.items() if given["format"] == name and f"{module}.weight" in group
    }


def _tiled(shape: tuple[int, ...], size: int, scale: TensorRef | None, stored: tuple[str, ...]) -> bool:
    """Whether scales are there, and as many as tiles for a weight of this shape need."""
    if scale is None or scale.dtype not in stored or len(shape) != 2 or shape[1] % size:
        return False
    return prod(scale.shape) == -(-shape[0] // 128) * 128 * -(-(shape[1] // size) // 4) * 4
