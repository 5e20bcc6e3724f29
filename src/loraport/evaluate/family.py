"""The models and LoRAs that are evaluated: a source, its distilled targets, LoRAs trained on the source.

The layout is that of the bundled data: `models/NAME/` with a `model.json` (how it is sampled, and how large its clips
are) and a `transformer/` folder, or, for a model that is its parent and LoRAs, their names in the card and
`distillations/NAME.safetensors`; `loras/NAME.safetensors` with `NAME.json` beside it.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from loraport.errors import FileError, UsageError
from loraport.files import file_digest
from loraport.zoo.catalogue import ModelCard, data_file, distillation_files, read_lora_card, read_model_card


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        folder: its own.
        card: what it was made from and how it is sampled.
        distill: the distillation LoRAs if the model is its parent plus those.
        drift_rank: if not None, what the model's blocks moved is cut to this rank, as when a distillation is passed
            on as a LoRA.
    """

    folder: Path
    card: ModelCard
    distill: tuple[Path, ...] = ()
    drift_rank: int | None = None

    @property
    def name(self) -> str:
        """The folder's name, and the rank if the drift is cut."""
        return self.folder.name + ("" if self.drift_rank is None else f" of rank {self.drift_rank}")

    def sampled_as(self, other: "Model") -> "Model":
        """The same weights in the steps of another model, without guidance; attention stays full."""
        sampling = replace(other.card.sampling, guidance=1.0, attention=self.card.sampling.attention)
        return replace(self, card=replace(self.card, sampling=sampling))


@dataclass(frozen=True)
class Lora:
    """A user LoRA that was trained on the source; `style` is its task."""

    file: Path
    style: str
    held_out: bool = False

    @property
    def name(self) -> str:
        """The file's name without suffix."""
        return self.file.stem


@dataclass(frozen=True)
class Family:
    """A source, its targets and the LoRAs of the source."""

    source: Model
    targets: tuple[Model, ...]
    loras: tuple[Lora, ...]

    def pick(self, targets: tuple[str, ...] = (), loras: tuple[str, ...] = ()) -> "Family":
        """Only the named targets and LoRAs (all if none are named). Raises UsageError for unknown names."""
        return Family(self.source, _named(self.targets, targets, "target"), _named(self.loras, loras, "LoRA"))

    def for_choosing(self) -> "Family":
        """Without what is held out."""
        targets = tuple(target for target in self.targets if not target.card.held_out)
        return Family(self.source, targets, tuple(lora for lora in self.loras if not lora.held_out))


def open_family(folder: Path | None = None) -> Family:
    """The family in a folder, the bundled one by default.

    Raises:
        FileError: no source, no target or no LoRA is there.
    """
    folder = data_file("") if folder is None else Path(folder)
    models = [_model(file.parent) for file in sorted((folder / "models").glob("*/model.json"))]
    sources = [model for model in models if model.card.parent is None]
    if len(sources) != 1:
        raise FileError("a family needs one model without a parent", where=str(folder), values=f"{len(sources)} found")
    targets = tuple(model for model in models if model.card.parent == sources[0].name)
    cards = {
        file.with_suffix(".safetensors"): read_lora_card(file) for file in sorted((folder / "loras").glob("*.json"))
    }
    loras = tuple(Lora(file, card.style, card.held_out) for file, card in cards.items())
    if not targets or not loras:
        raise FileError(
            "a family needs targets and LoRAs", where=str(folder), values=f"{len(targets)} and {len(loras)} found"
        )
    return Family(sources[0], targets, loras)


def digest(model: Model) -> str:
    """Hash of what a model is: its weights and how it is sampled."""
    files = model.distill or sorted((model.folder / "transformer").glob("*"))
    parts = [*map(file_digest, files), *([] if model.drift_rank is None else [f"rank {model.drift_rank}"])]
    return hashlib.sha256(json.dumps([parts, repr(model.card.sampling)]).encode()).hexdigest()


def _model(folder: Path) -> Model:
    return Model(folder, read_model_card(folder), distillation_files(folder))


def _named(items: tuple, names: tuple[str, ...], what: str) -> tuple:
    known = {item.name: item for item in items}
    for name in names:
        if name not in known:
            raise UsageError(f"the family has no {what} {name!r}", values=f"it has: {', '.join(known)}")
    return tuple(known[name] for name in names) if names else items
