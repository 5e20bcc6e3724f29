"""Pipelines of diffusers for both models, one at a time, by the classes that the family's yaml names."""

import contextlib
import gc
import inspect
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError

from loraport.comparing.models import Model
from loraport.comparing.settings import CompareSettings
from loraport.errors import FileError, UnsupportedError, UsageError, first_line, is_out_of_memory
from loraport.sampling.wan import device_for

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    Pipeline: TypeAlias = DiffusionPipeline
else:
    Pipeline = object  # named for type checkers only, so that diffusers loads late


@dataclass(frozen=True)
class DeviceSetup:
    """Where a model runs, and how it is kept.

    Attributes:
        device: where.
        dtype: of the weights.
        offload: `none`, `model`, `sequential` or `group`.
    """

    device: torch.device
    dtype: torch.dtype
    offload: str = "none"

    @classmethod
    def of(cls, device: str, precision: str, offload: str) -> "DeviceSetup":
        """From what the user says. Raises UsageError."""
        mps = device == "auto" and torch.backends.mps.is_available()
        found = device_for("mps" if mps else device)
        if found.type == "cpu" and offload != "none":
            raise UsageError("nothing can be offloaded from the CPU", values=f"--offload {offload}", fix="leave it out")
        if precision == "auto":
            precision = "float32" if found.type == "cpu" else "bfloat16"
        return cls(found, getattr(torch, precision), offload)


@contextlib.contextmanager
def opened(model: Model, place: DeviceSetup, *, with_image: bool = False) -> Iterator[Pipeline]:
    """The pipeline inside a `with` block; afterwards its memory is free again.

    Args:
        model: which one.
        place: where it is to run.
        with_image: whether its clips begin with an image.

    Raises:
        FileError: it cannot be loaded, or does not fit in memory.
        UnsupportedError: a prompt, or a prompt and an image, are not enough for it.
    """
    held = [_load(model, place, with_image=with_image)]
    try:
        yield held[0]
    finally:
        with contextlib.suppress(Exception):
            held[0].remove_all_hooks()
        held.clear()
        gc.collect()
        if place.device.type == "cuda":
            torch.cuda.empty_cache()


def _load(model: Model, place: DeviceSetup, *, with_image: bool) -> Pipeline:
    import diffusers

    root = model.base or model.path
    kind = _pipeline_class(model, with_image=with_image)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):  # diffusers fills weights at random before it loads them
            more: dict[str, Any] = {}
            if model.base is not None:
                network = getattr(diffusers, model.family.diffusers.model)
                more["transformer"] = _transformer(network, model.path, model.base, place.dtype)
                if model.two_experts:
                    more["transformer_2"] = network.from_pretrained(
                        model.path, subfolder="transformer_2", torch_dtype=place.dtype, local_files_only=True
                    )
            pipeline = kind.from_pretrained(root, torch_dtype=place.dtype, local_files_only=True, **more)
            _place(pipeline, place)
    except (
        OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError, MemoryError,
        SafetensorError,
    ) as error:  # fmt: skip
        if is_out_of_memory(error):
            raise FileError(
                "the model does not fit in memory", where=model.name, values=first_line(error)[:200],
                fix="use --offload model, or sequential, which needs least memory, or --precision bfloat16",
            ) from error  # fmt: skip
        raise FileError(
            "the pipeline could not be loaded", where=model.name, values=first_line(error)[:200],
            fix="check the folder with diffusers' own from_pretrained",
        ) from error  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _pipeline_class(model: Model, *, with_image: bool) -> Any:
    """The class that the model names, where diffusers has it, else the family's; a prompt, or a prompt and an image,
    must be enough for it.
    """
    import diffusers

    named, own = model.pipeline(with_image=with_image), model.family.diffusers
    usual = own.image_pipeline if with_image else own.pipeline
    kind = getattr(diffusers, named, None) or getattr(diffusers, usual, None)
    given = {"prompt", "image"} if with_image else {"prompt"}
    takes = [] if kind is None else list(inspect.signature(kind.__call__).parameters.values())[1:]
    needed = {one.name for one in takes if one.default is inspect.Parameter.empty}
    pictured = [one.name for one in takes[:1]] == ["image"] and named != usual  # FLUX.2's is content without one
    if not given <= {one.name for one in takes} or needed - given or (pictured and not with_image):
        raise UnsupportedError(
            f"the pipeline does not take {' and '.join(sorted(given))}" if with_image else
            "the pipeline takes more than a prompt", where=str(model.base or model.path),
            values=f"{named}: {', '.join(one.name for one in takes[:3]) or 'not known to diffusers'}",
            fix="leave --image out" if with_image else "use --image FILE, if it takes an image",
        )  # fmt: skip
    return kind


def clip_size(model: Model, settings: CompareSettings) -> tuple[int, int] | None:
    """Width and height of clips that an image is stretched to; None where the pipeline says it when it is loaded, or is
    another one than the family's, of which nobody knows what it makes of an image.
    """
    kind = _pipeline_class(model, with_image=True)
    if kind.__name__ != model.family.diffusers.image_pipeline:
        return None
    call = inspect.signature(kind.__call__).parameters
    asked = {"width": settings.width, "height": settings.height}
    wide, high = (said or (call[name].default if name in call else None) for name, said in asked.items())
    return (wide, high) if isinstance(wide, int) and isinstance(high, int) else None


def said_of_unused(models: Iterable[Model], settings: CompareSettings, *, with_image: bool) -> tuple[str, ...]:
    """What was asked of all clips and a pipeline has no name for, a sentence each."""
    asked = {"--frames": ("num_frames", settings.frames), "--negative": ("negative_prompt", settings.negative)}
    kinds = dict.fromkeys(_pipeline_class(model, with_image=with_image) for model in models)
    return tuple(
        f"{kind.__name__} takes no {flag}, so it is ignored."
        for kind in kinds
        for flag, (name, value) in asked.items()
        if value is not None and name not in inspect.signature(kind.__call__).parameters
    )


def _transformer(kind: Any, path: Path, base: Path, dtype: torch.dtype) -> Any:
    """The network alone: from a folder of diffusers, or from one file by diffusers' own conversion."""
    if path.is_dir():
        inside = "transformer" if (path / "transformer").is_dir() else None
        return kind.from_pretrained(path, subfolder=inside, torch_dtype=dtype, local_files_only=True)
    return kind.from_single_file(str(path), config=str(base), subfolder="transformer", torch_dtype=dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of the two libraries, which would be drawn across the program's own, and a warning."""
    import diffusers.utils.logging as ours
    import transformers.utils.logging as theirs

    shown = [library for library in (ours, theirs) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():  # newer versions call the dtype otherwise, older do not
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _place(pipeline: Any, place: DeviceSetup) -> None:
    if place.offload == "model":
        pipeline.enable_model_cpu_offload(device=place.device)
    elif place.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=place.device)
    elif place.offload == "group":
        pipeline.enable_group_offload(
            onload_device=place.device, offload_device=torch.device("cpu"), offload_type="leaf_level"
        )
    else:
        pipeline.to(place.device)
