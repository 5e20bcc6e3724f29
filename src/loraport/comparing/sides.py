"""The two models of a comparison, and how each is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.adapters.added_lora import AddedLora
from loraport.adapters.distilled import known_model
from loraport.comparing.models import Model, find_model
from loraport.comparing.pairs import check_lora, lora_file
from loraport.comparing.usual_sampling import filled, usual_sampling
from loraport.comparing.variants import Placed, Role
from loraport.engine.events import Listener, Remarked
from loraport.engine.experts.asked import loras_for
from loraport.errors import UsageError
from loraport.files import file_digest
from loraport.sampling.schedule import SamplingSettings

if TYPE_CHECKING:
    from loraport.comparing.opening import DeviceSetup


@dataclass(frozen=True)
class Side:
    """One of the two models as it is run.

    Attributes:
        model: what is loaded.
        settings: how it is sampled.
        distillation: LoRAs that make it; of two transformers the first.
        distillation_low: LoRAs that make the second.
        known: what was known of its sampling, and who says so; "" where the user said all.
    """

    model: Model
    settings: SamplingSettings
    distillation: tuple[AddedLora, ...] = ()
    distillation_low: tuple[AddedLora, ...] = ()
    known: str = ""

    def tell(self, on_event: Listener) -> None:
        """Say before the first clip what the user did not say of its sampling."""
        if self.known:
            flags = "--target-steps, --target-times and the like override it"
            on_event(Remarked(f"judging by its name, the target is sampled as {self.known}; {flags}"))

    @property
    def name(self) -> str:
        """As the user named it."""
        named = dict.fromkeys(f"{one.file} at {one.strength:g}" for one in (*self.distillation, *self.distillation_low))
        return " + ".join([self.model.name, *named])

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The LoRAs that make it, and where each is loaded."""
        high = [Placed(lora_file(one.file), one.strength) for one in self.distillation]
        return (*high, *(Placed(lora_file(one.file), one.strength, "low") for one in self.distillation_low))

    def digest(self, place: "DeviceSetup") -> str:
        """Of its files, and of all that runs it alike."""
        from loraport.comparing.clips import model_digest, short  # and numpy

        models = [model_digest(path) for path in (self.model.path, self.model.base) if path is not None]
        loras = [f"{one.key(short(file_digest(one.file)))}:{one.strength:g}" for one in self.placed]
        return " ".join([self.model.family.name, str(place.dtype), place.device.type, *models, *loras])


def find_sides(
    source: str | Path,
    target: str | Path | None,
    target_lora: Sequence[AddedLora],
    source_sampling: SamplingSettings,
    target_sampling: SamplingSettings,
    target_lora_low: Sequence[AddedLora],
) -> dict[Role, Side]:
    """Source and target.

    Args:
        source: the pipeline.
        target: another, or its transformer alone; None where distillation LoRAs make it of the source.
        target_lora: those LoRAs.
        source_sampling: what the user says of the source; the rest is its pipeline's own.
        target_sampling: of the target; the rest is what is known of it by its name.
        target_lora_low: those of the low-noise one of two transformers, where the others do not serve both.

    Raises:
        UsageError: there is no target, or nobody knows how it is sampled. Else as `find_model`, `loras_for` and
            `check_lora`.
    """
    if target is None and not target_lora and not target_lora_low:
        raise UsageError("the target is not given", fix="give --target MODEL, or --target-lora FILE for the source")
    for one in (*target_lora, *target_lora_low):
        if one.expert or one.adapter or one.scale is not None:
            raise UsageError(
                "compare uses a distillation LoRA file as it is", where=one.file, fix="give only FILE:STRENGTH"
            )
        lora_file(one.file)
    first = find_model(source, "source")
    second = first if target is None else find_model(target, "target", first)
    high, low = tuple(target_lora), tuple(target_lora_low)
    if second.two_experts and not low:
        high, low = loras_for(high, "high"), loras_for(high, "low")
    elif low and not second.two_experts:
        raise UsageError(
            "the target has one transformer, but a LoRA is given for a low-noise one",
            values=f"--target-lora-low {low[0].file}", fix="--target-lora",
        )  # fmt: skip
    names = [*([] if target is None else [str(target)]), *(one.file for one in (*high, *low))]
    known = known_model(names, second.family.name)
    if known is not None and known.causal:  # which no pipeline of diffusers runs
        known = None
    settled = target_sampling if known is None else filled(target_sampling, usual_sampling(known))
    if settled.steps is None and settled.times is None:
        raise UsageError(
            "it is not known how the target is sampled", where=", ".join(names),
            fix=
                "follow its authors, for example: --target-steps 4 --target-guidance 1, perhaps --target-shift or "
                "--target-times",
        )  # fmt: skip
    words = f"{known.name}, as {known.seen} says" if known is not None and settled != target_sampling else ""
    made = Side(second, settled, high, low, words)
    for placed in made.placed:
        check_lora(placed.file, placed.expert, second, "target")
    return {"source": Side(first, source_sampling), "target": made}
