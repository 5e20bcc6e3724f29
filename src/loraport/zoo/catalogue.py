"""What ships with the package: names, files and the small JSON card beside each of them."""

import difflib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from loraport.errors import FileError, UsageError

_DISTILL = "lora.safetensors"


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
    """A bundled model: `parent` is the model that it was made from (None for a source)."""

    name: str
    summary: str
    parent: str | None
    sampling: Sampling


@dataclass(frozen=True)
class LoraCard:
    """A bundled LoRA: `source` is the model it was trained on, `style` the name of its look in `world.STYLES`."""

    name: str
    summary: str
    source: str
    style: str


def models() -> list[str]:
    """Names of the bundled models, sources first."""
    names = sorted(card.parent.name for card in (_data() / "models").glob("*/model.json"))
    whole = [name for name in names if name not in distillations()]
    return sorted(whole, key=lambda name: model_card(name).parent is not None)


def distillations() -> list[str]:
    """Names of the bundled distillations that are kept as a LoRA on their source (for `--target-lora`)."""
    return sorted(file.parent.name for file in (_data() / "models").glob(f"*/{_DISTILL}"))


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
        return _data() / "models" / name / _DISTILL
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
    return ModelCard(file.parent.name, card["summary"], card["parent"], Sampling(**card["sampling"]))


def lora_card(name: str) -> LoraCard:
    """The card of a bundled LoRA. Raises UsageError for an unknown name."""
    file = _data() / "loras" / f"{name}.json"
    if not file.is_file():
        raise _unknown(name, loras(), "LoRA")
    card = json.loads(file.read_text(encoding="utf-8"))
    return LoraCard(name, card["summary"], card["source"], card["style"])


def data_file(name: str) -> Path:
    """A file that the models share, such as the table of prompt tokens."""
    return _data() / name


def _data() -> Path:
    return Path(str(resources.files("loraport.zoo"))) / "data"


def _unknown(name: str, known: list[str], what: str) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return UsageError(
        f"no bundled {what} is called {name!r}",
        values=f"bundled: {', '.join(known)}",
        fix=f"did you mean {near[0]!r}?" if near else None,
    )
