"""What is put side by side: each way of making the clips, in the order in which they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraport.comparing.pairs import LoraFiles
from loraport.containers.names import Expert, without_expert
from loraport.errors import UsageError

Role = Literal["source", "target"]
REFERENCE = "source+lora"
"""Key of what is aimed at."""


@dataclass(frozen=True)
class Placed:
    """A LoRA on a transformer of a pipeline.

    Attributes:
        file: the LoRA.
        strength: of it.
        expert: which of two transformers; the only one is as the first of two.
    """

    file: Path
    strength: float = 1.0
    expert: Expert = "high"

    def key(self, digest: str) -> str:
        """The digest of the file in the keys of clips, marked where it is for the second of two transformers."""
        return f"low:{digest}" if self.expert == "low" else digest


@dataclass(frozen=True)
class Variant:
    """One way of making the clips.

    Attributes:
        key: its name in JSON.
        label: its name for people.
        role: whose pipeline.
        lora: the files that are loaded; None for the model alone.
        strength: of it.
        kind: `reference`, `baseline` or `result`: what colour it has on the page.
    """

    key: str
    label: str
    role: Role
    lora: LoraFiles | None = None
    strength: float = 1.0
    kind: Literal["reference", "baseline", "result"] = "baseline"

    @property
    def placed(self) -> tuple[Placed, ...]:
        """What is loaded, and where."""
        files = {} if self.lora is None else self.lora.by_expert
        return tuple(Placed(file, self.strength, expert) for expert, file in files.items())


def list_variants(
    lora: LoraFiles, transferred: Sequence[LoraFiles], strengths: Sequence[float], *, source_alone: bool = False
) -> tuple[Variant, ...]:
    """All variants of a comparison; those of the source come first, so that each pipeline is loaded once.

    Raises:
        UsageError: the same file is named twice.
    """
    files = [tuple((at, file.resolve()) for at, file in one.by_expert.items()) for one in (lora, *transferred)]
    if len(set(files)) != len(files):
        raise UsageError(
            "a LoRA is named twice",
            values=", ".join(str(one.named) for one in (lora, *transferred)),
            fix="name each file once",
        )
    found = [Variant(REFERENCE, "source + LoRA", "source", lora, kind="reference")]
    if source_alone:
        found.append(Variant("source", "source alone", "source"))
    found.append(Variant("target", "target alone", "target"))
    for strength in strengths:
        label = "target + LoRA" if strength == 1 else f"target + LoRA at {strength:g}"
        found.append(Variant(f"target+lora@{strength:g}", label, "target", lora, strength))
    names = [_name(one) for one in transferred]
    for number, (one, name) in enumerate(zip(transferred, names, strict=True)):
        told = name if names.count(name) == 1 else f"{name} ({one.named.parent.name})"
        found.append(Variant(f"target+file{number + 1}", f"target + {told}", "target", one, kind="result"))
    return tuple(found)


def _name(lora: LoraFiles) -> str:
    """Of a pair that without the expert at its end."""
    stem = lora.named.stem
    return without_expert(stem) if len(lora.by_expert) == 2 else stem
