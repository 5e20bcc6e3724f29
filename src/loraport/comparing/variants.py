"""What is put side by side: each way of making the clips, in the order in which they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraport.errors import UsageError

Role = Literal["source", "target"]
REFERENCE = "source+lora"
"""Key of what is aimed at."""


@dataclass(frozen=True)
class Variant:
    """One way of making the clips.

    Attributes:
        key: its name in JSON.
        label: its name for people.
        role: whose pipeline.
        lora: the file that is loaded; None for the model alone.
        strength: of it.
        kind: `reference`, `baseline` or `result`: what colour it has on the page.
    """

    key: str
    label: str
    role: Role
    lora: Path | None = None
    strength: float = 1.0
    kind: Literal["reference", "baseline", "result"] = "baseline"


def list_variants(
    lora: Path, transferred: Sequence[Path], strengths: Sequence[float], *, source_alone: bool = False
) -> tuple[Variant, ...]:
    """All variants of a comparison; those of the source come first, so that each pipeline is loaded once.

    Raises:
        UsageError: the same file is named twice.
    """
    files = [file.resolve() for file in (lora, *transferred)]
    if len(set(files)) != len(files):
        raise UsageError("a LoRA is named twice", values=", ".join(str(file) for file in (lora, *transferred)))
    found = [Variant(REFERENCE, "source + LoRA", "source", lora, kind="reference")]
    if source_alone:
        found.append(Variant("source", "source alone", "source"))
    found.append(Variant("target", "target alone", "target"))
    for strength in strengths:
        label = "target + LoRA" if strength == 1 else f"target + LoRA at {strength:g}"
        found.append(Variant(f"target+lora@{strength:g}", label, "target", lora, strength))
    names = [file.stem for file in transferred]
    for number, file in enumerate(transferred):
        name = file.stem if names.count(file.stem) == 1 else f"{file.stem} ({file.parent.name})"
        found.append(Variant(f"target+file{number + 1}", f"target + {name}", "target", file, kind="result"))
    return tuple(found)
