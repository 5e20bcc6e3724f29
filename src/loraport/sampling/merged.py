"""Distillation LoRAs merged into a model in memory, all that they change: what a user of them runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loraport.adapters.added_lora import AddedLora
from loraport.adapters.parse import open_adapter
from loraport.errors import MismatchError
from loraport.models.checkpoint import open_checkpoint
from loraport.sampling.network import diffusers_name

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel


def add_loras(network: "WanTransformer3DModel", added: Sequence[AddedLora], folder: Path) -> None:
    """Add LoRAs to a network's weights, biases, norms and modulations, each sum rounded once to the network's dtype.

    Args:
        network: of diffusers, changed in place.
        added: the LoRAs with their strengths.
        folder: where the network's weights lie.

    Raises:
        LoraportError: as `open_adapter`. MismatchError: a change of what the network has not, or in another shape.
    """
    if not added:
        return
    model = open_checkpoint(folder)
    family = model.architecture.family
    changes: dict[str, Tensor] = {}
    for each in added:
        adapter = open_adapter(
            each.file, model, expert=each.expert, adapter=each.adapter, scale=each.scale, layers_alone=True
        )
        found = {f"{name}.weight": update.load().dense() for name, update in adapter.layers.items()}
        found |= {item.param: item.load().float() for item in adapter.passthrough if item.kind != "text_encoder"}
        for param, change in found.items():
            name = diffusers_name(family, param)
            sum_before = changes.get(name)
            scaled = each.strength * change
            changes[name] = scaled if sum_before is None else sum_before + scaled
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, change in changes.items():
            weight = parameters.get(name)
            if weight is None or weight.numel() != change.numel():
                raise MismatchError("the model cannot take one of the changes of the distillation LoRA", where=name)
            weight.copy_((weight.float() + change.to(weight.device).reshape(weight.shape)).to(weight.dtype))
