"""Runnable Wan models: diffusers' own transformer class, from the bundled tiny models to 14B with offloading."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraport.calibration.denoiser import Runnable, Schedule
from loraport.errors import FileError, LoraportError, MismatchError, UsageError
from loraport.formats.family import families
from loraport.zoo import catalogue

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

DISTILL = "lora.safetensors"  # a tiny model that is kept as a LoRA on its parent
SMALL = 512  # models up to this width run batches side by side on a CPU, one thread each
TIME_SCALE = 1000  # the model counts time from 0 to 1000


@dataclass(frozen=True)
class RunSettings:
    """How to run a model that does not say so itself (everything but the bundled ones).

    Attributes:
        schedule: time steps, guidance and sampler.
        latents: frames, height, width of the probes, in latent units.
        device: `auto`, `cpu`, `cuda[:i]` or `mps`.
        offload: keep the weights on the CPU and bring one layer at a time to the device.
    """

    schedule: Schedule | None = None
    latents: tuple[int, int, int] | None = None
    device: str = "auto"
    offload: bool = False


NO_SETTINGS = RunSettings()


@dataclass(frozen=True)
class WanDenoiser:
    """A diffusers Wan transformer as a `Denoiser`."""

    network: "WanTransformer3DModel"
    device: torch.device

    def velocity(
        self, latents: Float[Tensor, "n c f h w"], time: float, condition: Float[Tensor, "n l d"]
    ) -> Float[Tensor, "n c f h w"]:
        """One pass through the network; what comes back lies where the latents lay."""
        dtype = self.network.dtype
        moment = torch.full((len(latents),), time * TIME_SCALE, device=self.device)
        x, tokens = latents.to(self.device, dtype), condition.to(self.device, dtype)
        return self.network(x, moment, tokens, return_dict=False)[0].float().to(latents.device)

    def linear(self, layer: str) -> nn.Linear:
        """By diffusers' spelling of the canonical name."""
        try:
            module = self.network.get_submodule(families()["wan"].spell(layer, "diffusers"))
        except (KeyError, AttributeError):
            raise MismatchError("the LoRA has a layer that the model has not", where=layer) from None
        if not isinstance(module, nn.Linear):
            raise MismatchError("not a linear layer in the model", where=layer, values=type(module).__name__)
        return module


def open_runnable(spec: str | Path, settings: RunSettings = NO_SETTINGS, *, role: str = "model") -> Runnable:
    """Say how a model is run, without loading it.

    Args:
        spec: `zoo:NAME`, the name of a bundled model, a folder like theirs (with a `model.json`), or any diffusers
            folder of Wan.
        settings: needed for the last kind; a schedule given here goes before a model's own.
        role: what to call it in messages.

    Raises:
        FileError: no such folder, or no transformer in it.
        UsageError: its time steps or the size of the probes are not given.
        MismatchError: a model that needs more than noise and a prompt.
    """
    folder = _folder(spec, role)
    if (folder / "model.json").is_file():
        return _tiny(folder, settings, role)
    config = _config(folder, role)
    schedule, latents = settings.schedule, settings.latents
    if schedule is None:
        raise UsageError(
            f"the time steps of the {role} are not given", where=str(folder),
            fix=f"say how it is sampled: --{role}-times 1000,757,522 or --{role}-steps 30",
        )  # fmt: skip
    if latents is None:
        raise UsageError(
            "the size of the probes is not given", fix="frames, height, width in latents: --latents 5x32x56"
        )
    _check_size(latents, config, role)
    small = (
        config["num_attention_heads"] * config["attention_head_dim"] <= SMALL and _device(settings.device).type == "cpu"
    )
    return Runnable(
        str(spec), lambda: _load(folder, settings), schedule, folder, (config["in_channels"], *latents), small=small
    )


def check_together(source: Runnable, target: Runnable) -> None:
    """Raise MismatchError unless both models take the same latents."""
    if source.latents != target.latents:
        raise MismatchError(
            "source and target take different latents",
            values=f"source {_by(source.latents)}, target {_by(target.latents)} (channels x frames x height x width)",
            fix="both must be the same model, one distilled from the other, probed at one size",
        )


def _folder(spec: str | Path, role: str) -> Path:
    text = str(spec)
    name = text.removeprefix("zoo:")
    if text.startswith("zoo:") or (
        not Path(spec).exists() and name in (*catalogue.models(), *catalogue.distillations())
    ):
        found = catalogue.path(name)
        return found.parent if name in catalogue.distillations() else found
    folder = Path(spec)
    if not folder.is_dir():
        raise FileError(
            f"the {role} is not a folder that can be run" if folder.exists() else f"there is no such {role}",
            where=text,
            fix="calibration runs the model, so it needs a diffusers folder (config.json and weights), "
            f"or a bundled model: {', '.join(catalogue.models())}",
        )
    return folder


def _config(folder: Path, role: str) -> dict:
    file = next((file for file in (folder / "transformer/config.json", folder / "config.json") if file.is_file()), None)
    if file is None:
        raise FileError(f"the {role} has no transformer/config.json", where=str(folder), fix="give a diffusers folder")
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("_class_name") != "WanTransformer3DModel":
        raise MismatchError(
            f"the {role} is not a Wan transformer", where=str(file), values=str(config.get("_class_name")),
            fix="other models can be run through loraport.calibration.Denoiser",
        )  # fmt: skip
    if config.get("image_dim") or config["in_channels"] != config["out_channels"]:
        raise MismatchError(
            f"the {role} takes an image besides the prompt, which this command cannot give it",
            where=str(file),
            values=f"{config['in_channels']} channels in, {config['out_channels']} out",
            fix="plug your own code in through loraport.calibration.Denoiser",
        )
    return config


def _tiny(folder: Path, settings: RunSettings, role: str) -> Runnable:
    from loraport.zoo import sampler, world

    card = catalogue.read_model_card(folder)
    distill = folder / DISTILL if (folder / DISTILL).is_file() else None
    whole = folder if distill is None else folder.parent / str(card.parent)

    def load() -> WanDenoiser:
        _need_diffusers()
        network = sampler.load_model(whole)[0]
        if distill is not None:
            sampler.load_lora(network, distill)
            network.fuse_lora()
            with torch.random.fork_rng(devices=[]):
                network.unload_lora()
        return WanDenoiser(network, torch.device("cpu"))

    times = tuple(sampler.time_grid(card.sampling).tolist())
    schedule = settings.schedule or Schedule(times, float(card.sampling.guidance))
    latents = (_config(whole, role)["in_channels"], world.FRAMES, world.SIZE, world.SIZE)
    checkpoint = folder if distill is None else None
    return Runnable(card.name, load, schedule, checkpoint, latents, small=True, bundled=True, distill=distill)


def _load(folder: Path, settings: RunSettings) -> WanDenoiser:
    _need_diffusers()
    from diffusers import WanTransformer3DModel

    device = _device(settings.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    sub = "transformer" if (folder / "transformer").is_dir() else None
    try:
        with torch.random.fork_rng(devices=[]):  # diffusers fills weights at random before it loads them
            network = WanTransformer3DModel.from_pretrained(folder, subfolder=sub, torch_dtype=dtype)
        network.requires_grad_(False).eval()
        if settings.offload:
            network.enable_group_offload(
                onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level"
            )
        else:
            network.to(device)
    except OSError as error:
        raise FileError(
            "the model could not be loaded", where=str(folder), values=str(error).splitlines()[0]
        ) from error
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error) from error
    return WanDenoiser(network, device)


def out_of_memory(error: BaseException) -> LoraportError:
    """The message for a device that is too small."""
    return FileError(
        "out of memory on the device",
        values=str(error).splitlines()[0],
        fix="add --offload, a smaller --latents or --batch 1; finished parts are kept with --keep FOLDER",
    )


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_size(latents: tuple[int, int, int], config: dict, role: str) -> None:
    patch = config["patch_size"]
    if any(size <= 0 or size % step for size, step in zip(latents, patch, strict=True)):
        raise UsageError(
            f"the probes do not divide into the {role}'s patches", values=f"{_by(latents)}, patches of {_by(patch)}"
        )


def _need_diffusers() -> None:
    import importlib.util

    missing = [name for name in ("diffusers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "calibration runs the models and needs more than a transfer", values=f"not installed: {', '.join(missing)}",
            fix="pip install 'loraport[diffusers]'",
        )  # fmt: skip


def _by(sizes: tuple[int, ...] | list[int]) -> str:
    return " x ".join(str(size) for size in sizes)
