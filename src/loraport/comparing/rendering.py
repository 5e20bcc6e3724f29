"""One clip by a pipeline: its sampling, its seed, its LoRAs; and pixels back."""

import contextlib
import inspect
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import safe_open
from torch import Generator

from loraport.adapters.convert import convert
from loraport.comparing.clips import short
from loraport.comparing.images import FirstFrame
from loraport.comparing.pairs import part_of
from loraport.comparing.prompts import Prompt
from loraport.comparing.variants import Placed
from loraport.containers.names import EXPERTS
from loraport.errors import (
    FileError,
    LoraportError,
    MismatchError,
    NumericalError,
    UnmatchedKeysError,
    first_line,
    is_out_of_memory,
)
from loraport.models.family import Family
from loraport.sampling.schedule import TIMESTEPS, SamplingSettings


@dataclass(frozen=True)
class Shot:
    """What is asked of a pipeline for one clip, besides the model and its LoRAs.

    Attributes:
        prompt: what it is to show.
        seed: of the starting noise, and of fresh noise on the way.
        negative: the negative prompt; None for the pipeline's own.
        height, width, frames: of the clip; None for the pipeline's own.
    """

    prompt: Prompt
    seed: int
    negative: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None

    def made_of(self) -> dict[str, Any]:
        """All of it as plain values."""
        image = self.prompt.image
        given = {} if image is None else {"image": short(image.digest)}
        return {**vars(self), "prompt": self.prompt.text, **given}


def set_sampling(pipeline: Any, settings: SamplingSettings) -> None:
    """Give a pipeline the times, the shift and the sampler that were asked for; what was not is its own."""
    own = pipeline.scheduler
    if settings.times is not None or settings.sampler is not None:
        pipeline.scheduler = _flow_scheduler(settings, own)
    elif settings.shift is not None:
        name = "flow_shift" if "flow_shift" in own.config else "shift"
        # A shift that was asked for is the whole schedule: none by resolution, nor stretched to an end as Qwen-Image's.
        others = {"use_dynamic_shifting": False, "shift_terminal": None} if name == "shift" else {}
        changed = {key: value for key, value in others.items() if key in own.config}
        pipeline.scheduler = type(own).from_config(own.config, **{name: settings.shift}, **changed)


def _flow_scheduler(settings: SamplingSettings, own: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    fresh = settings.sampler == "renoise"
    if settings.times is None:
        shift = own.config.get("flow_shift", own.config.get("shift", 1.0)) if settings.shift is None else settings.shift
        return FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=fresh)
    fixed = [time / TIMESTEPS for time in settings.times]

    class FixedTimes(FlowMatchEulerDiscreteScheduler):
        """At the times that were given, whatever the pipeline asks for."""

        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
            timesteps: Any = None,
        ) -> None:
            super().set_timesteps(device=device, sigmas=fixed)

    return FixedTimes(shift=1.0, stochastic_sampling=fresh)


def render(pipeline: Any, family: Family, settings: SamplingSettings, shot: Shot) -> UInt8[np.ndarray, "f h w 3"]:
    """Make one clip.

    Args:
        pipeline: with its LoRAs on it, and `set_sampling` called.
        family: of the model.
        settings: steps and guidance.
        shot: the rest.

    Raises:
        NumericalError: pixels that are not finite.
        LoraportError: as `call`.
    """
    return _pixels(call(pipeline, family, settings, shot))


def call(pipeline: Any, family: Family, settings: SamplingSettings, shot: Shot) -> Any:
    """What the pipeline makes.

    Args:
        pipeline: as for `render`.
        family: the same.
        settings: the same.
        shot: the same.

    Raises:
        FileError: no memory for it.
        MismatchError: the pipeline refuses what it is asked for.
    """
    try:
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(shot.seed)  # for samplers that draw fresh noise from the global state
            return pipeline(**call_arguments(pipeline, family, settings, shot))
    except (ValueError, TypeError, IndexError, RuntimeError, ImportError, MemoryError) as error:
        if is_out_of_memory(error):
            raise FileError(
                "out of memory while making a clip", values=first_line(error)[:200],
                fix=
                    "use --offload model or sequential, or a smaller --width, --height or --frames; finished "
                    "clips are kept",
            ) from error  # fmt: skip
        raise MismatchError(
            "the pipeline refuses these settings", where=type(pipeline).__name__, values=first_line(error)[:200],
            fix="if it is the size, use another --height, --width or --frames; finished clips are kept",
        ) from error  # fmt: skip


def call_arguments(pipeline: Any, family: Family, settings: SamplingSettings, shot: Shot) -> dict[str, Any]:
    """What the pipeline is called with: what was asked for and it has a name for."""
    takes = inspect.signature(pipeline.__call__).parameters
    guidance = family.diffusers.guidance
    negative = " " if shot.negative is None and guidance == "true_cfg_scale" else shot.negative
    steps = len(settings.times) if settings.times is not None else settings.steps
    asked: dict[str, Any] = {
        "height": shot.height,
        "width": shot.width,
        "num_frames": shot.frames,
        "num_inference_steps": steps,
        guidance: settings.guidance,
        "negative_prompt": negative,
    }
    given = {name: value for name, value in asked.items() if value is not None and name in takes}
    if shot.prompt.image is not None:
        given["image"] = shot.prompt.image.open()
    return {"prompt": shot.prompt.text, "generator": Generator().manual_seed(shot.seed), "output_type": "np", **given}


def as_large(image: FirstFrame, clip: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "1 h w 3"]:
    """An image in the size of a clip, as diffusers makes it."""
    from PIL.Image import Resampling

    high, wide = clip.shape[1:3]
    return np.asarray(image.open().resize((wide, high), Resampling.LANCZOS))[None]


def _pixels(made: Any) -> UInt8[np.ndarray, "f h w 3"]:
    """The first clip of a pipeline's output; what can be seen through stands before white."""
    frames = np.asarray(made.frames[0] if hasattr(made, "frames") else made.images[0], dtype=np.float32)
    frames = frames[None] if frames.ndim == 3 else frames
    if not np.isfinite(frames).all():
        raise NumericalError(
            "the clip has pixels that are not finite",
            fix="use --precision float32 or bfloat16; or the LoRA does not belong to this model",
        )
    frames = frames.clip(0, 1)
    if frames.shape[-1] == 4:  # Qwen-Image-2.1
        frames = frames[..., :3] * frames[..., 3:] + 1 - frames[..., 3:]
    return np.rint(255 * frames).astype(np.uint8)


@contextlib.contextmanager
def with_loras(pipeline: Any, family: Family, loras: Sequence[Placed]) -> Iterator[None]:
    """A pipeline with LoRAs on it inside a `with` block, loaded by its own loader; afterwards it is as it was.

    Args:
        pipeline: of diffusers.
        family: of its model.
        loras: the files, their strengths, and which transformer each is for; none leaves the pipeline as it is.

    Raises:
        LoraportError: as `convert` for a file that is no LoRA of the family.
        MismatchError: the loader refuses it. UnmatchedKeysError: the loader leaves out a layer.
    """
    asked = {f"lora{number}": one for number, one in enumerate(loras)}
    if not asked:
        yield
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise MismatchError(f"diffusers loads no LoRAs for {family.title}", where=type(pipeline).__name__)
    try:
        for name, one in asked.items():
            _load(pipeline, family, one, name)
        pipeline.set_adapters(list(asked), [one.strength for one in asked.values()])
        yield
    finally:
        pipeline.unload_lora_weights()


def _load(pipeline: Any, family: Family, lora: Placed, name: str) -> None:
    file, (part, _) = lora.file, EXPERTS[lora.expert]
    second = {"load_into_transformer_2": True} if lora.expert == "low" else {}
    two = getattr(pipeline, "transformer_2", None) is not None
    chosen = part_of(file, lora.expert, two_experts=two)
    with tempfile.TemporaryDirectory(prefix="loraport-", ignore_cleanup_errors=True) as place:
        path = Path(place, "lora.safetensors")
        convert(file, path, to="diffusers", architecture=family.name, expert=chosen)
        try:
            with warnings.catch_warnings():  # that there are two adapters is meant
                warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
                pipeline.load_lora_weights(place, weight_name=path.name, adapter_name=name, **second)
        except LoraportError:
            raise
        except (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError, AttributeError) as error:
            raise MismatchError(
                "diffusers does not load this LoRA", where=str(file), values=first_line(error)[:200],
                fix="loraport inspect describes it; is it for this size of the model?",
            ) from error  # fmt: skip
        with safe_open(path, framework="pt") as held:
            wanted = sum(key.endswith(".lora_A.weight") for key in held.keys())  # noqa: SIM118 - it has no iterator
    placed = sum(f".lora_A.{name}." in key for key in getattr(pipeline, part).state_dict())
    if placed < wanted:
        raise UnmatchedKeysError(
            "diffusers left layers of the LoRA out", where=str(file), values=f"{placed} of {wanted} are on the model",
            fix=f"loraport verify {file} --for diffusers lists them",
        )  # fmt: skip


def made_of(model: str, loras: Mapping[str, float], settings: SamplingSettings, shot: Shot) -> dict[str, Any]:
    """All that determines the pixels of a clip on one kind of machine, as plain values.

    Args:
        model: its digest, with what else it runs in (family, number format).
        loras: digest -> strength.
        settings: how it is sampled.
        shot: prompt, seed, size.
    """
    sampled = {name: getattr(settings, name) for name in ("steps", "times", "shift", "guidance", "sampler")}
    return {"version": 1, "model": model, "loras": dict(loras), "sampling": sampled, "shot": shot.made_of()}
