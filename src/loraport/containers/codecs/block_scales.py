"""A scale for every few numbers of a row, in the order that cuBLAS wants; and ComfyUI's mxfp8, which has them.

mxfp8 (OCP Microscaling Formats 1.0): e4m3 numbers, and for each 32 a power of two, stored as its exponent. The scales
lie in tiles of 128 rows and 4 blocks, filled up with zeros ("1D Block Scaling Factors Layout" in the documentation of
cuBLAS). Other programs may store them without tiles, which the shapes do not tell; so only what ComfyUI's settings call
by name is read. nvfp4 has a file of its own.
"""

from math import prod

from loraport.containers import dtypes
from loraport.containers.codecs.base import Claim, Codec, ModuleSettings, logical
from loraport.containers.stored import Group, TensorRef


class Mxfp8(Codec):
    """e4m3 with a power of two for each 32 numbers."""

    name = "mxfp8"

    def claim(self, group: Group, settings: ModuleSettings) -> Claim:
        """Every weight that ComfyUI's settings call mxfp8."""
        claim = Claim()
        for module in modules_called(self.name, settings, group):
            weight, scale = group[f"{module}.weight"], group.get(f"{module}.weight_scale")
            name, companions = f"{self.name} with other scales than ComfyUI's", {}
            if fits_tiles(weight.shape, 32, scale, ("U8", "F8_E8M0")) and weight.dtype == "F8_E4M3":
                assert scale is not None
                name, companions = self.name, {"scale": logical(scale, Exponents.name, {})}
            claim.weights[weight.key] = logical(weight, name, companions)
            claim.used.update({weight.key, f"{module}.weight_scale"} & group.keys())
        return claim

    def rounding_floor(self, ref: TensorRef) -> float:
        """That of e4m3: powers of two move numbers without making them coarser."""
        return dtypes.rounding_floor("F8_E4M3")


class Exponents(Codec):
    """Scales in e8m0, which torch may not have: byte b is 2^(b - 127), and 255 is no number."""

    name = "e8m0"


class SmallFloats(Codec):
    """Scales in e4m3 in a tensor of bytes, as older ComfyUI wrote it."""

    name = "e4m3 in bytes"


def modules_called(name: str, settings: ModuleSettings, group: Group) -> dict[str, None]:
    """The modules that ComfyUI's settings say are stored in a format."""
    return {
        module: None for module, given in settings.items() if given["format"] == name and f"{module}.weight" in group
    }


def fits_tiles(shape: tuple[int, ...], size: int, scale: TensorRef | None, stored: tuple[str, ...]) -> bool:
    """Whether scales are there, and as many as tiles for a weight of this shape need."""
    if scale is None or scale.dtype not in stored or len(shape) != 2 or shape[1] % size:
        return False
    return prod(scale.shape) == -(-shape[0] // 128) * 128 * -(-(shape[1] // size) // 4) * 4
