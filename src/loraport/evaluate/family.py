"""The models and LoRAs that are evaluated: a source, its distilled targets, LoRAs trained on the source.

The layout is that of the bundled data: `models/NAME/` with a `model.json` and either a `transformer/` folder or, for
a distillation that is kept as a LoRA, a `lora.safetensors`; `loras/NAME.safetensors` with `NAME.json` beside it.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from diffusers import WanTransformer3DModel

from loraport.errors import FileError, UsageError
from loraport.sampling import tiny
from loraport.zoo.catalogue import ModelCard, data_file, read_model_card

DISTILL = "lora.safetensors"


@dataclass(frozen=True)
class Model:
    """A model on disk. `distill` is the distillation LoRA if the model is its parent plus that LoRA."""

    folder: Path
    card: ModelCard
    distill: Path | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def sampled_as(self, other: "Model") -> "Model":
        """The same weights in the steps of another model, without guidance; attention stays full."""
        sampling = replace(other.card.sampling, guidance=1.0, attention=self.card.sampling.attention)
        return replace(self, card=replace(self.card, sampling=sampling))


@dataclass(frozen=True)
class Lora:
    """A user LoRA that was trained on the source; `style` is its task."""

    file: Path
    style: str

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
    loras = tuple(
        Lora(file.with_suffix(".safetensors"), json.loads(file.read_text(encoding="utf-8"))["style"])
        for file in sorted((folder / "loras").glob("*.json"))
    )
    if not targets or not loras:
        raise FileError(
            "a family needs targets and LoRAs", where=str(folder), values=f"{len(targets)} and {len(loras)} found"
        )
    return Family(sources[0], targets, loras)


def load_network(family: Family, model: Model) -> WanTransformer3DModel:
    """The network of a model; a distillation LoRA is merged into its parent's weights."""
    if model.distill is None:
        return tiny.load_model(model.folder)[0]
    network, _ = tiny.load_model(family.source.folder)
    tiny.merge_lora(network, model.distill)
    return network


def digest(model: Model) -> str:
    """Hash of what a model is: its weights and how it is sampled."""
    files = [model.distill] if model.distill else sorted((model.folder / "transformer").glob("*"))
    parts = [file_digest(file) for file in files if file is not None]
    return hashlib.sha256(json.dumps([parts, repr(model.card.sampling)]).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of a file's bytes."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _model(folder: Path) -> Model:
    distill = folder / DISTILL
    return Model(folder, read_model_card(folder), distill if distill.is_file() else None)


def _named(items: tuple, names: tuple[str, ...], what: str) -> tuple:
    known = {item.name: item for item in items}
    for name in names:
        if name not in known:
            raise UsageError(f"the family has no {what} {name!r}", values=f"it has: {', '.join(known)}")
    return tuple(known[name] for name in names) if names else items
