"""The tensors of a LoRA in another profile, bit for bit unless a scale must go into them."""

import torch
from torch import Tensor

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.dialect import SAME_AS_INPUT, Profile
from loraport.adapters.join import Factors, factored, without_zeros
from loraport.adapters.loading.layers import stored_update
from loraport.adapters.render import render
from loraport.adapters.update import LayerUpdate
from loraport.errors import NumericalError
from loraport.models.architecture import Architecture


def render_exact(
    lora: LoraAdapter, profile: Profile, model: Architecture | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a LoRA in another profile, in their stored dtype; and the layers whose scale was folded in.

    Args:
        lora: the LoRA.
        profile: the output profile.
        model: the model it belongs to, for the sizes of layers of which the LoRA has only a bias.

    Raises:
        NumericalError: a NaN or infinity, or a scale that does not fit the dtype.
        UnsupportedError: the profile has no spelling for something that is carried.
    """
    keeps_header = scale_stays_in_header(lora, profile)
    factors: dict[str, Factors] = {}
    matrices: dict[str, Tensor] = {}
    folded: list[str] = []
    for name, layer in lora.layers.items():
        found = stored_update(layer)
        if isinstance(found, Tensor):
            matrix = found if layer.scale == 1.0 else _fold(found, layer)
            folded += [name] if layer.scale != 1.0 else []
            if profile.factor_matrices:
                factors[name] = factored(matrix)
            else:
                matrices[name] = matrix
            continue
        up, down = found
        if profile.name != SAME_AS_INPUT:
            up, down = up.reshape(layer.shape[0], layer.rank), down.reshape(layer.rank, layer.shape[1])
            if name in lora.fused:
                up, down = without_zeros(up, down)
        if profile.dialect.has_alpha_tensors and layer.scale > 0:
            factors[name] = Factors(up, down, layer.scale * len(down))
        elif layer.scale == 1.0 or keeps_header:
            factors[name] = Factors(up, down)
        else:
            factors[name] = Factors(_fold(up, layer), down)
            folded.append(name)
    # The bias of a scaled LoRA is scaled by its reader, so there it must stay as it was.
    kept = profile.name == SAME_AS_INPUT and (profile.dialect.has_alpha_tensors or keeps_header)
    whole = model or lora.architecture
    return render(factors, matrices, lora.passthrough, profile, whole, scaled=not kept), tuple(folded)


def scale_stays_in_header(lora: LoraAdapter, profile: Profile) -> bool:
    """Whether the scale stays in the header, where the input has it."""
    return profile.name == SAME_AS_INPUT and lora.dialect.alpha == "metadata"


def _fold(up: Tensor, layer: LayerUpdate) -> Tensor:
    # One factor only: one rounding instead of two, and none at all for the usual powers of two.
    scaled = (up.float() * layer.scale).to(up.dtype)
    lost = (scaled == 0) & (up != 0)
    if not torch.isfinite(scaled.float()).all() or (layer.scale and lost.float().mean() > 1e-3):
        raise NumericalError(
            f"the scale of {layer.name} does not fit into {up.dtype}",
            values=f"scale {layer.scale:g}, largest entry {float(up.float().abs().max()):.3g}",
            fix="convert to kohya, which keeps the scale beside the factors",
        )
    return scaled
