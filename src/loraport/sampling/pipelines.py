"""Models that are in memory already: diffusers' `WanPipeline` and `WanTransformer3DModel`, used as they are."""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from loraport.adapters.added_lora import AddedLora
from loraport.containers.tensors import digest_tensor
from loraport.errors import UsageError
from loraport.sampling.denoiser import Runnable
from loraport.sampling.folders import check_config, need_diffusers, two_experts
from loraport.sampling.prompts import encode_by
from loraport.sampling.schedule import NO_SETTINGS, SamplingSettings, settle
from loraport.sampling.wan import (
    WanDenoiser,
    is_small,
    open_runnable,
    settle_latents,
)

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, WanPipeline, WanTransformer3DModel

    Model: TypeAlias = str | Path | Runnable | WanPipeline | WanTransformer3DModel
else:
    Model = object  # the classes of diffusers are named for type checkers only, so that it loads late


def as_runnable(
    model: Model,
    settings: SamplingSettings = NO_SETTINGS,
    *,
    role: str = "model",
    added: tuple[AddedLora, ...] = (),
) -> Runnable:
    """Whatever a model is given as, as something that calibration can run.

    Args:
        model: a name or folder (see `wan.open_runnable`), a `WanPipeline`, a `WanTransformer3DModel`, or a `Runnable`.
        settings: time steps and size. A pipeline brings its scheduler and its text encoder; a bare transformer
            brings neither, so its times are even unless a schedule is given.
        role: `source` or `target`; what to call it in messages.
        added: distillation LoRAs to be merged into it, which needs a name or a folder.

    Raises:
        UsageError: an object of another kind, settings that are missing or that it cannot follow, or adapters on it.
        FileError, MismatchError: as `wan.open_runnable`.
    """
    if added and not isinstance(model, (str, Path)):
        raise UsageError(
            f"distillation LoRAs are merged into a {role} loaded for that purpose, but this one is already in "
            "memory",
            values=", ".join(each.file for each in added),
            fix=
                "give its folder instead, or a loraport.calibration.Runnable that has them merged and names them "
                "(added=)",
        )  # fmt: skip
    if isinstance(model, Runnable):
        if settings != NO_SETTINGS:
            raise UsageError(
                f"the {role} is a Runnable, which already says how it is run",
                values=f"{role}_sampling is given too", fix="put schedule and latents into the Runnable",
            )  # fmt: skip
        return model
    if isinstance(model, (str, Path)):
        return open_runnable(model, settings, role=role, added=added)
    need_diffusers()
    from diffusers import WanPipeline, WanTransformer3DModel

    if isinstance(model, WanTransformer3DModel):
        return _of_transformer(model, None, settings, role, f"{role} {type(model).__name__}")
    if isinstance(model, WanPipeline):
        return _of_pipeline(model, settings, role)
    raise UsageError(
        f"the {role} is not something that can be run", values=f"a {type(model).__module__}.{type(model).__name__}",
        fix="give a folder, a WanPipeline, a WanTransformer3DModel, or a loraport.calibration.Runnable with your code",
    )  # fmt: skip


def _of_pipeline(pipeline: "WanPipeline", settings: SamplingSettings, role: str) -> Runnable:
    name = f"{role} {type(pipeline).__name__}"
    if pipeline.transformer_2 is not None:
        raise two_experts(role, name)
    if pipeline.transformer is None:
        raise UsageError(f"the pipeline of the {role} has no transformer", fix="load it with its transformer")
    made = _of_transformer(pipeline.transformer, pipeline.scheduler, settings, role, name)
    whole = pipeline.text_encoder is not None and pipeline.tokenizer is not None
    return dataclasses.replace(made, encode=partial(encode_by, pipeline) if whole else None)


def _of_transformer(
    network: "WanTransformer3DModel",
    scheduler: "SchedulerMixin | None",
    settings: SamplingSettings,
    role: str,
    name: str,
) -> Runnable:
    if settings.device != "auto" or settings.offload:
        raise UsageError(
            f"the {role} is already in memory and stays where it is",
            values="a device or offload is given too",
            fix="move it first (.to(device), .enable_group_offload(...)), or give its folder instead",
        )
    if getattr(network, "peft_config", None):
        raise UsageError(
            f"the {role} has adapters on it", where=name, values=", ".join(network.peft_config),
            fix=
                "calibration attaches the LoRA itself: call unload_lora_weights() first, or fuse what belongs to "
                "the model (fuse_lora(), then unload_lora_weights())",
        )  # fmt: skip
    check_config(network.config, role, name)
    return Runnable(
        name,
        lambda: WanDenoiser(network, network.device),
        settle(settings, scheduler, role=role, where=name),
        settings.checkpoint or network.config.get("_name_or_path") or None,
        settle_latents(settings.latents, network.config, role),
        small=is_small(network.config, network.device),
        identity=partial(_digest, network),
    )


def _digest(network: "WanTransformer3DModel") -> str:
    """Of all weights, and of the attention code, since a model may have been made causal by that alone."""
    made = hashlib.sha256()
    for key, tensor in network.state_dict().items():
        made.update(f"{key} {digest_tensor(tensor)}\n".encode())
    for key, processor in network.attn_processors.items():
        made.update(f"{key} {type(processor).__name__}\n".encode())
    return made.hexdigest()[:16]
