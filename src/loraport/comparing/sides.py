"""The two models of a comparison, and how each is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.adapters.added_lora import AddedLora
from loraport.adapters.distilled import known_model
from loraport.comparing.models import Model, find_model
from loraport.comparing.usual_sampling import filled, usual_sampling
from loraport.comparing.variants import Role
from loraport.containers.names import named_path
from loraport.engine.events import Listener, Remarked
from loraport.errors import FileError, UsageError
from loraport.sampling.schedule import SamplingSettings

if TYPE_CHECKING:
    from loraport.comparing.opening import DeviceSetup


@dataclass(frozen=True)
class Side:
    """One of the two models as it is run.

    Attributes:
        model: what is loaded.
        settings: how it is sampled.
        distillation: LoRAs that make it.
        known: what was known of its sampling, and who says so; "" where the user said all.
    """

    model: Model
    settings: SamplingSettings
    distillation: tuple[AddedLora, ...] = ()
    known: str = ""

    def tell(self, on_event: Listener) -> None:
        """Say before the first clip what the user did not say of its sampling."""
        if self.known:
            flags = "--target-steps, --target-times and the like say otherwise"
            on_event(Remarked(f"by its name the target is sampled as {self.known}; {flags}"))

    @property
    def name(self) -> str:
        """As the user named it."""
        return " + ".join([self.model.name, *(f"{one.file} at {one.strength:g}" for one in self.distillation)])

    def digest(self, place: "DeviceSetup") -> str:
        """Of its files, and of all that runs it alike."""
        from loraport.comparing.clips import file_digest, model_digest, short  # and numpy

        models = [model_digest(path) for path in (self.model.path, self.model.base) if path is not None]
        loras = [f"{short(file_digest(lora_file(one.file)))}:{one.strength:g}" for one in self.distillation]
        return " ".join([self.model.family.name, str(place.dtype), place.device.type, *models, *loras])


def find_sides(
    source: str | Path,
    target: str | Path | None,
    target_lora: Sequence[AddedLora],
    source_sampling: SamplingSettings,
    target_sampling: SamplingSettings,
) -> dict[Role, Side]:
    """Source and target.

    Args:
        source: the pipeline.
        target: another, or its transformer alone; None where distillation LoRAs make it of the source.
        target_lora: those LoRAs.
        source_sampling: what the user says of the source; the rest is its pipeline's own.
        target_sampling: of the target; the rest is what is known of it by its name.

    Raises:
        UsageError: there is no target, or nobody knows how it is sampled. Else as `find_model`.
    """
    if target is None and not target_lora:
        raise UsageError("the target is not given", fix="--target MODEL, or --target-lora FILE on the source")
    for one in target_lora:
        if one.expert or one.adapter or one.scale is not None:
            raise UsageError(
                "compare takes a distillation LoRA as its file is", where=one.file, fix="FILE:STRENGTH alone"
            )
        lora_file(one.file)
    first = find_model(source, "source")
    second = first if target is None else find_model(target, "target", first)
    names = [*([] if target is None else [str(target)]), *(one.file for one in target_lora)]
    known = known_model(names, second.family.name)
    if known is not None and known.causal:  # which no pipeline of diffusers runs
        known = None
    settled = target_sampling if known is None else filled(target_sampling, usual_sampling(known))
    if settled.steps is None and settled.times is None:
        raise UsageError(
            "it is not known how the target is sampled", where=", ".join(names),
            fix="as its authors say: --target-steps 4 --target-guidance 1, perhaps --target-shift or --target-times",
        )  # fmt: skip
    words = f"{known.name}, as {known.seen} says" if known is not None and settled != target_sampling else ""
    return {
        "source": Side(first, source_sampling),
        "target": Side(second, settled, tuple(target_lora), words),
    }


def lora_file(spec: str | Path) -> Path:
    """The file that a LoRA's name means. Raises FileError."""
    path = named_path(spec)
    if not path.is_file():
        raise FileError("there is no such LoRA file", where=str(spec))
    return path
