"""A network of diffusers that is in memory, written to files as it computes now: offloaded, quantised, with adapters.

One module at a time, so that no second copy of the network is ever in memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loraport.containers.safetensors import write_safetensors
from loraport.errors import UnsupportedError, UsageError
from loraport.files import write_json

STEM = "diffusion_pytorch_model"
SHARD_BYTES = 2 * 2**30
_PLAIN = (Tensor, nn.Parameter, nn.Buffer) if hasattr(nn, "Buffer") else (Tensor, nn.Parameter)
_BITSANDBYTES = ("Params4bit", "Int8Params")


@torch.no_grad()
def write_network(network: nn.Module, folder: Path, *, without: str | None = None) -> tuple[str, ...]:
    """Write the weights of a network as diffusers calls them: those of its layers with their active adapters added.

    Args:
        network: it may be on any device, offloaded to the CPU by diffusers or accelerate, or quantised; it is left as
            it is.
        folder: to be made.
        without: an adapter that does not count, since it is about to be replaced.

    Returns:
        Remarks for the user.

    Raises:
        UnsupportedError: an adapter or a way of storing that cannot be made one matrix.
        UsageError: adapters that are fused and still there, or weights that are not in memory.
        FileError: the folder cannot be written.
    """
    folder.mkdir(parents=True)
    places: dict[str, str] = {}
    quantised: set[str] = set()
    shard: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        name = f"{STEM}-{len(set(places.values())) + 1:05}.safetensors"
        write_safetensors(folder / name, shard, {"format": "pt"}, durable=False)
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for key, tensor, kind in _weights(network, without):
        quantised |= {kind} if kind else set()
        own = tensor.detach().cpu().contiguous().clone()  # what is shared or offloaded again must not be written later
        shard[key] = own
        size += own.nbytes
        total += own.nbytes
        if size >= SHARD_BYTES:
            flush()
            size = 0
    if shard:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / f"{STEM}.safetensors.index.json", index)
    return tuple(
        f"the target is quantised in memory ({kind}), and its rounding is part of the drift; to leave it out, "
        "name the files of the unquantised model with target="
        for kind in sorted(quantised)
    )


def active_adapters(network: nn.Module) -> tuple[str, ...]:
    """The adapters that a network computes with now.

    Raises:
        UsageError: some are fused and still there, so that nobody can say what the network is without them.
    """
    found: dict[str, None] = {}
    for path, layer in _tuned(network).items():
        if layer.merged:
            raise UsageError(
                "adapters on the pipeline are fused but still loaded",
                where=path,
                values=", ".join(layer.merged_adapters),
                fix="call unload_lora_weights() after fuse_lora(), which keeps what was fused, or call unfuse_lora()",
            )
        if not layer.disable_adapters:
            found |= dict.fromkeys(name for name in layer.active_adapters if _has(layer, name))
    return tuple(found)


def activate(network: nn.Module, names: tuple[str, ...]) -> None:
    """Have a network compute with these of its adapters, each as strong as it is."""
    for layer in _tuned(network).values():
        layer.set_adapter([name for name in names if _has(layer, name)], inference_mode=True)


def _tuned(network: nn.Module) -> dict[str, Any]:
    """The layers that have adapters; none where PEFT is not there."""
    if not getattr(network, "peft_config", None):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {path: module for path, module in network.named_modules() if isinstance(module, BaseTunerLayer)}


def _has(layer: Any, name: str) -> bool:
    return any(name in getattr(layer, held) for held in layer.adapter_layer_names)


def _weights(network: nn.Module, without: str | None) -> Iterator[tuple[str, Tensor, str]]:
    """Name, value, and how it is quantised ("" where it is not), of every tensor that a file of the network has."""
    _refuse_on_disk(network)
    tuned = _tuned(network)
    active = [name for name in active_adapters(network) if name != without]
    for path, module in network.named_modules():
        owner = next((one for one in tuned if path.startswith(f"{one}.")), None)
        if owner is not None and not f"{path}.".startswith(f"{owner}.base_layer."):
            continue  # a factor of an adapter
        name = path.replace(".base_layer", "")
        stored = {**module._parameters, **module._buffers}
        wanted = [
            part for part in stored if stored[part] is not None and part not in module._non_persistent_buffers_set
        ]
        if not wanted:
            continue
        for part in wanted:
            value, kind = _numbers(_at_hand(module, part), module, f"{name}.{part}")
            if part == "weight" and owner is not None and path == f"{owner}.base_layer":
                value = _with_adapters(value, tuned[owner], active, name)
            yield f"{name}.{part}".removeprefix("."), value, kind


def _with_adapters(weight: Tensor, layer: Any, active: list[str], where: str) -> Tensor:
    added = [name for name in active if name in layer.active_adapters and _has(layer, name)]
    if not added:
        return weight
    whole = weight.detach().cpu().float()
    for name in added:
        if not hasattr(layer, "get_delta_weight") or name in getattr(layer, "lora_variant", {}):
            raise UnsupportedError(
                "an adapter on the pipeline cannot be expressed as a change of the weight", where=where,
                values=f"{name}, {type(layer).__name__}",
                fix="fuse it: fuse_lora(), then unload_lora_weights()",
            )  # fmt: skip
        whole = whole + layer.get_delta_weight(name).detach().cpu().float()
    return whole


def _numbers(tensor: Tensor, module: nn.Module, where: str) -> tuple[Tensor, str]:
    """A tensor as numbers in the shape that its layer has, and how it was quantised."""
    if tensor.is_meta:
        raise UsageError(
            "a weight of the pipeline is not in memory", where=where,
            fix="load it, or name the files of the model with target=",
        )  # fmt: skip
    kind = "" if type(tensor) in _PLAIN else type(tensor).__name__
    found = tensor
    if kind in _BITSANDBYTES:
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        found = dequantize_bnb_weight(tensor, state=getattr(module, "state", None))
    elif hasattr(tensor, "quant_type") and hasattr(tensor, "as_tensor"):
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        found, kind = dequantize_gguf_tensor(tensor), "GGUF"
    elif kind:  # torchao, quanto
        found = tensor.dequantize()
    if isinstance(module, nn.Linear) and where.endswith(".weight"):
        known = type(found) in _PLAIN and found.is_floating_point()
        if not known or found.shape != (module.out_features, module.in_features):
            raise UnsupportedError(
                "a weight of the pipeline is stored in an unknown way", where=where,
                values=f"{type(tensor).__module__}.{type(tensor).__name__}, {tensor.dtype} {list(tensor.shape)}",
                fix="name the files of the model with target=",
            )  # fmt: skip
    return found, kind


def _at_hand(module: nn.Module, part: str) -> Tensor:
    """A parameter or buffer, also where accelerate has it elsewhere until the module is run."""
    own = module._parameters.get(part)
    tensor = module._buffers[part] if own is None else own
    assert tensor is not None
    first = getattr(module, "_hf_hook", None)
    for hook in getattr(first, "hooks", (first,)) if tensor.is_meta else ():
        elsewhere = getattr(hook, "weights_map", None)
        if elsewhere is not None:
            return elsewhere[part]
    return tensor


def _refuse_on_disk(network: nn.Module) -> None:
    """Diffusers leaves tensors of arbitrary content behind where it offloads groups of layers to the disk."""
    for path, module in network.named_modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if any(getattr(getattr(hook, "group", None), "offload_to_disk_path", None) for hook in hooks.values()):
            raise UsageError(
                "the pipeline is offloaded to the disk", where=path,
                fix="name the files of the model with target=, or load the LoRA before enable_group_offload",
            )  # fmt: skip
