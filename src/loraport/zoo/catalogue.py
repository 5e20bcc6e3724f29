"""What ships with the package: names, files and the small JSON card beside each of them."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from loraport.errors import FileError, UsageError, one_of

DISTILLATIONS = "distillations"
"""Folder of the LoRAs that make a distilled model of its parent, beside the folder of models."""


class ClipSize(NamedTuple):
    """How large the clips of a model are; those of the bundled ones if nothing is said.

    Attributes:
        frames: number of them.
        side: pixels of a frame from side to side, and from top to bottom.
    """

    frames: int = 6
    side: int = 16

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        return self.frames, self.side, self.side


TINY = ClipSize()


@dataclass(frozen=True)
class Sampling:
    """How a model wants to be sampled; a wrong schedule is often mistaken for a bad LoRA.

    Attributes:
        steps: Euler steps from noise to clip.
        guidance: classifier-free guidance scale; 1 means a single pass without the null prompt.
        shift: time shift `s`, `t = s u / (1 + (s - 1) u)` for `u` evenly spaced from 1 to 0.
        attention: "full", or "frame-causal" where a frame sees itself and the frames before it.
    """

    steps: int
    guidance: float
    shift: float
    attention: str = "full"


@dataclass(frozen=True)
class ModelCard:
    """A bundled model.

    Attributes:
        name: the folder's.
        summary: for people.
        parent: the model that it was made from; None for a source.
        sampling: how it is sampled.
        loras: names of the distillation LoRAs that make it of its parent; none if it has weights of its own.
        held_out: trained from another seed, only to confirm what was chosen without it.
        clip: size of its clips.
    """

    name: str
    summary: str
    parent: str | None
    sampling: Sampling
    loras: tuple[str, ...] = ()
    held_out: bool = False
    clip: ClipSize = TINY


@dataclass(frozen=True)
class LoraCard:
    """A bundled LoRA.

    Attributes:
        name: the file's.
        summary: for people.
        source: the model that it was trained on.
        style: what it teaches, a name of `world.STYLES`.
        held_out: as in `ModelCard`.
    """

    name: str
    summary: str
    source: str
    style: str
    held_out: bool = False


def models() -> list[str]:
    """Names of the bundled models with weights of their own, sources first."""
    cards = [read_model_card(card.parent) for card in (_data() / "models").glob("*/model.json")]
    return [card.name for card in sorted(cards, key=lambda card: (card.parent or "", card.name)) if not card.loras]


def distillations() -> list[str]:
    """Names of the bundled LoRAs that distil their source (for `--target-lora`)."""
    return sorted(file.stem for file in (_data() / DISTILLATIONS).glob("*.safetensors"))


def loras() -> list[str]:
    """Names of the bundled LoRAs."""
    return sorted(file.stem for file in (_data() / "loras").glob("*.safetensors"))


def path(name: str) -> Path:
    """The diffusers folder of a bundled model, or the file of a bundled LoRA or distillation.

    Raises:
        UsageError: nothing of that name is bundled.
    """
    if name in models():
        return _data() / "models" / name
    if name in loras():
        return _data() / "loras" / f"{name}.safetensors"
    if name in distillations():
        return _data() / DISTILLATIONS / f"{name}.safetensors"
    raise _unknown(name, [*models(), *loras(), *distillations()], "model or LoRA")


def model_card(name: str) -> ModelCard:
    """The card of a bundled model. Raises UsageError for an unknown name."""
    file = _data() / "models" / name / "model.json"
    if not file.is_file():
        raise _unknown(name, models(), "model")
    return read_model_card(file.parent)


def read_model_card(folder: Path) -> ModelCard:
    """The card of a model in any folder that has a `model.json`, such as one that was just trained.

    Raises:
        FileError: there is no such file.
    """
    file = Path(folder) / "model.json"
    if not file.is_file():
        raise FileError("no model.json beside the model, so its sampling settings are unknown", where=str(file))
    card = json.loads(file.read_text(encoding="utf-8"))
    sampling, loras = Sampling(**card["sampling"]), tuple(card.get("loras", ()))
    held_out, clip = card.get("held_out", False), ClipSize(**card.get("clip", {}))
    return ModelCard(file.parent.name, card["summary"], card["parent"], sampling, loras, held_out, clip)


def distillation_files(folder: Path) -> tuple[Path, ...]:
    """The LoRAs that make the model in a folder of its parent, in order; none if it has weights of its own."""
    beside = folder.parent.parent / DISTILLATIONS
    return tuple(beside / f"{name}.safetensors" for name in read_model_card(folder).loras)


def lora_card(name: str) -> LoraCard:
    """The card of a bundled LoRA. Raises UsageError for an unknown name."""
    file = _data() / "loras" / f"{name}.json"
    if not file.is_file():
        raise _unknown(name, loras(), "LoRA")
    return read_lora_card(file)


def read_lora_card(file: Path) -> LoraCard:
    """The card beside a LoRA in any folder."""
    card = json.loads(file.read_text(encoding="utf-8"))
    return LoraCard(file.stem, card["summary"], card["source"], card["style"], card.get("held_out", False))


def data_file(name: str) -> Path:
    """A file that the models share, such as the table of prompt tokens."""
    return _data() / name


def _data() -> Path:
    return Path(str(resources.files("loraport.zoo"))) / "data"


def _unknown(name: str, known: list[str], what: str) -> UsageError:
    return UsageError(f"no bundled {what} is named {name!r}", fix=one_of(name, known))
