"""nvfp4: e2m1 numbers, two in a byte, for each 16 of a row an e4m3 scale, and one float32 scale for all.

Programs differ in which of two numbers has the lower half of the byte, in whether the scales of blocks lie in tiles,
and in whether the scale for all multiplies or divides. None of that is to be seen in the numbers; it is known from the
names of the tensors, and of ComfyUI's only where its settings are there, since NVIDIA's ModelOpt has the same names and
another order.
"""

from dataclasses import dataclass
from math import prod, sqrt

from loraport.containers.codecs.base import Claim, Codec, ModuleSettings, logical
from loraport.containers.codecs.block_scales import SmallFloats, fits_tiles, modules_called
from loraport.containers.stored import Group, TensorRef

BLOCK = 16
# Relative rounding error of Gaussian weights, which is that of ComfyUI's encoder (comfy-kitchen 0.2.40); measured.
_ERROR = 0.095
_BESIDE = ("input_scale", "input_global_scale", "input_absmax")  # of no use here


@dataclass(frozen=True)
class Packing:
    """One program's way of writing nvfp4.

    Args:
        program: that writes it.
        weight: what the packed numbers are called.
        factors: what scales the whole tensor, and to which power it is taken.
        low_first: the first of two numbers has the lower half of the byte.
        tiled: scales of blocks lie in tiles; otherwise row by row.
        inputs: what multiplies the inputs of the layer, where there is such a thing, and so the columns of the weight.
    """

    program: str
    weight: str
    factors: tuple[tuple[str, int], ...]
    low_first: bool = True
    tiled: bool = True
    inputs: str = ""

    @property
    def name(self) -> str:
        """As `TensorRef.codec` has it."""
        return "nvfp4" if self == COMFYUI else f"nvfp4 of {self.program}"

    def marks(self, module: str, group: Group) -> bool:
        """Whether a module has the tensors that only this packing has."""
        return all(f"{module}.{part}" in group for part in (self.weight, *dict(self.factors)))


COMFYUI = Packing("ComfyUI", "weight", (("weight_scale_2", 1),), low_first=False, inputs="pre_quant_scale")
PACKINGS = (
    COMFYUI,
    # 2688 over the largest number; of a calibrated file, 1 over the product of two other scalars
    Packing("LightX2V", "weight", (("weight_global_scale", -1),)),
    Packing("LightX2V, calibrated", "weight", (("alpha", 1), ("input_global_scale", 1))),
    Packing("compressed-tensors", "weight_packed", (("weight_global_scale", -1),), tiled=False),
)


def is_nvfp4(module: str, group: Group) -> bool:
    """Whether a module has the tensors of some packing of nvfp4."""
    return any(packing.marks(module, group) for packing in PACKINGS)


class Nvfp4(Codec):
    """A weight as one program writes it."""

    def __init__(self, packing: Packing):
        self.packing = packing
        self.name = packing.name

    def claim(self, group: Group, settings: ModuleSettings) -> Claim:
        """Every weight that has the tensors of this packing; ComfyUI's where its settings say so too."""
        packing, claim = self.packing, Claim()
        called = modules_called("nvfp4", settings, group) if packing == COMFYUI else {}
        mark = f".{packing.factors[0][0]}"
        marked = [key.removesuffix(mark) for key in group if key.endswith(mark)]
        for module in {**called, **dict.fromkeys(marked)}:
            if packing != COMFYUI and not packing.marks(module, group):
                continue
            if packing == COMFYUI and module not in called:
                some = group.get(f"{module}.weight") or group[module + mark]
                claim.weights[f"{module}.weight"] = logical(some, "nvfp4 without ComfyUI's settings", {})
            else:
                claim.weights[f"{module}.weight"] = self._weight(module, group)
            parts = ("weight", packing.weight, "weight_scale", *dict(packing.factors), packing.inputs, *_BESIDE)
            claim.used.update({f"{module}.{part}" for part in parts} & group.keys())
        return claim

    def _weight(self, module: str, group: Group) -> TensorRef:
        weight, scale = group[f"{module}.{self.packing.weight}"], group.get(f"{module}.weight_scale")
        factors = {part: ref for part, _ in self.packing.factors if (ref := group.get(f"{module}.{part}"))}
        inputs = group.get(f"{module}.{self.packing.inputs}")
        shape = (weight.shape[0], 2 * weight.shape[1]) if len(weight.shape) == 2 else ()
        if (
            weight.dtype != "U8"
            or not self._fits(shape, scale)
            or [ref.dtype for ref in factors.values() if prod(ref.shape) == 1] != ["F32"] * len(self.packing.factors)
            or (inputs is not None and inputs.shape != shape[1:])
        ):
            return logical(weight, f"nvfp4 with other scales than {self.packing.program}'s", {})
        assert scale is not None
        companions = {"scale": logical(scale, SmallFloats.name, {}) if scale.dtype == "U8" else scale, **factors}
        return logical(weight, self.name, companions | ({} if inputs is None else {"inputs": inputs}), shape)

    def _fits(self, shape: tuple[int, ...], scale: TensorRef | None) -> bool:
        if self.packing.tiled:
            return fits_tiles(shape, BLOCK, scale, ("U8", "F8_E4M3"))
        return (
            scale is not None
            and scale.dtype == "F8_E4M3"
            and len(shape) == 2
            and not shape[1] % BLOCK
            and scale.shape == (shape[0], shape[1] // BLOCK)
        )

    def rounding_floor(self, ref: TensorRef) -> float:
        """Measured on Gaussian weights."""
        return sqrt(2.0) * _ERROR
