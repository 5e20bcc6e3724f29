"""Runnable Wan models: diffusers' own transformer class, from the bundled tiny models to 14B with offloading."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraport.adapters.added_lora import AddedLora
from loraport.errors import FileError, MismatchError, UsageError, first_line
from loraport.models.families import families
from loraport.sampling.denoiser import Runnable
from loraport.sampling.folders import CARD, config_of, find_folder, need_diffusers, two_experts
from loraport.sampling.merged import add_loras
from loraport.sampling.network import load_network
from loraport.sampling.prompts import encode_by_folder, has_encoder
from loraport.sampling.schedule import NO_SETTINGS, TIMESTEPS, SamplingSettings, Schedule, scheduler_in, settle
from loraport.zoo import catalogue, world

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

SMALL = 512  # models up to this width run batches side by side on a CPU, one thread each


@dataclass(frozen=True)
class WanDenoiser:
    """A diffusers Wan transformer as a `Denoiser`."""

    network: "WanTransformer3DModel"
    device: torch.device

    def velocity(
        self, latents: Float[Tensor, "n c f h w"], time: float, condition: Float[Tensor, "n l d"]
    ) -> Float[Tensor, "n c f h w"]:
        """One pass through the network; what comes back lies where the latents lay."""
        dtype, width = self.network.dtype, self.network.config.text_dim
        if condition.shape[-1] != width:
            raise MismatchError(
                "the prompts do not fit the model", values=
                    f"{condition.shape[-1]} numbers per token, but it takes {width}",
                fix="encode them with the text encoder that belongs to the model",
            )  # fmt: skip
        moment = torch.full((len(latents),), time * TIMESTEPS, device=self.device)
        x, tokens = latents.to(self.device, dtype), condition.to(self.device, dtype)
        return self.network(x, moment, tokens, return_dict=False)[0].float().to(latents.device)

    def linear(self, layer: str) -> nn.Linear:
        """By diffusers' spelling of the canonical name."""
        try:
            module = self.network.get_submodule(families()["wan"].spell(layer, "diffusers"))
        except (KeyError, AttributeError):
            raise MismatchError("the LoRA has a layer that the model does not have", where=layer) from None
        if not isinstance(module, nn.Linear):
            raise MismatchError("not a linear layer in the model", where=layer, values=type(module).__name__)
        return module


def open_runnable(
    spec: str | Path,
    settings: SamplingSettings = NO_SETTINGS,
    *,
    role: str = "model",
    added: tuple[AddedLora, ...] = (),
) -> Runnable:
    """Say how a model is run, without loading it.

    Args:
        spec: `zoo:NAME`, a folder like those of the zoo (with a `model.json`), or any diffusers folder of Wan.
        settings: needed for the last kind; what is given here goes before what the model says itself.
        role: what to call it in messages.
        added: distillation LoRAs to be merged into it.

    Raises:
        FileError: no such folder, or no transformer in it.
        UsageError: its time steps or the size of the clips are not given, or diffusers is not installed.
        MismatchError: a model that needs more than noise and a prompt, or that is two.
    """
    folder = find_folder(spec, role)
    need_diffusers()
    if (folder / CARD).is_file():
        return _tiny(folder, settings, added)
    config = config_of(folder, role)
    if (folder / "transformer_2").is_dir():
        raise two_experts(role, str(folder))
    scheduler = None
    if settings.steps is not None and settings.shift is None:
        scheduler = scheduler_in(folder, role=role)
    schedule = settle(settings, scheduler, role=role, where=str(folder))
    latents = settle_latents(settings.latents, config, role)
    device = device_for(settings.device)
    encode = None
    if has_encoder(folder):
        encode = partial(encode_by_folder, folder, device=device)
    return Runnable(
        str(spec),
        lambda: _load(folder, settings, added),
        schedule,
        folder,
        latents,
        small=is_small(config, device),
        encode=encode,
        added=added,
    )


def check_together(source: Runnable, target: Runnable) -> None:
    """Raise MismatchError unless both models take the same latents."""
    if source.latents != target.latents:
        raise MismatchError(
            "source and target take different latents",
            values=f"source {_by(source.latents)}, target {_by(target.latents)} (channels x frames x height x width)",
            fix="both must be versions of one model, one distilled from the other, sampled at one size",
        )


def _tiny(folder: Path, settings: SamplingSettings, added: tuple[AddedLora, ...]) -> Runnable:
    card = catalogue.read_model_card(folder)
    distill = catalogue.distillation_files(folder)
    whole = folder.parent / str(card.parent) if distill else folder

    def load() -> WanDenoiser:
        from loraport.sampling import tiny

        network = tiny.load_model(whole)[0]
        for file in distill:
            tiny.merge_lora(network, file)
        add_loras(network, added, whole)
        return WanDenoiser(network, torch.device("cpu"))

    latents = (world.CHANNELS, *card.clip.shape)
    schedule = _of_card(card.sampling, settings)
    checkpoint = None if distill else folder
    own = tuple(AddedLora(file=str(file)) for file in distill)
    return Runnable(card.name, load, schedule, checkpoint, latents, small=True, bundled=True, added=(*own, *added))


def _of_card(card: catalogue.Sampling, settings: SamplingSettings) -> Schedule:
    """A bundled model's own schedule, with what the user wants otherwise."""
    given = settings.given(card.guidance)
    if given is not None:
        return given
    shift = card.shift if settings.shift is None else settings.shift
    return settings.over(Schedule.even(settings.steps or card.steps, shift=shift, guidance=card.guidance))


def _load(folder: Path, settings: SamplingSettings, added: tuple[AddedLora, ...]) -> WanDenoiser:
    device = device_for(settings.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        with torch.random.fork_rng(devices=[]):  # diffusers fills weights at random before it loads them
            network = load_network(folder, dtype)
        network.requires_grad_(False).eval()
        add_loras(network, added, folder)
        if settings.offload:
            network.enable_group_offload(
                onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level"
            )
        else:
            network.to(device)
    except OSError as error:
        raise FileError("the model could not be loaded", where=str(folder), values=first_line(error)) from error
    return WanDenoiser(network, device)


def device_for(name: str) -> torch.device:
    """The one device that a model runs on, for `auto` CUDA where there is any. Raises UsageError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
        raise UsageError(
            "PyTorch cannot use this device here", values=f"{name}; {first_line(error)[:80]}",
            fix="use auto, cpu, or one device that is there, such as cuda:0",
        ) from error  # fmt: skip
    return torch.device(name)


def is_small(config: Mapping[str, Any], device: torch.device) -> bool:
    """Whether batches run side by side, one thread each."""
    return device.type == "cpu" and config["num_attention_heads"] * config["attention_head_dim"] <= SMALL


def settle_latents(
    latents: tuple[int, int, int] | None, config: Mapping[str, Any], role: str
) -> tuple[int, int, int, int]:
    """Channels, frames, height, width of the clips. Raises UsageError if they are missing or do not fit patches."""
    if latents is None:
        raise UsageError(
            "the size of the clips is not given",
            fix="give frames, height and width in latents: --latents 5x32x56, in Python "
            "SamplingSettings(latents=(5, 32, 56))",
        )
    patch = config["patch_size"]
    if any(size <= 0 or size % step for size, step in zip(latents, patch, strict=True)):
        raise UsageError(
            f"the clips do not divide into the {role}'s patches", values=f"{_by(latents)}, patches of {_by(patch)}"
        )
    return (config["in_channels"], *latents)


def _by(sizes: tuple[int, ...] | list[int]) -> str:
    return " x ".join(str(size) for size in sizes)
