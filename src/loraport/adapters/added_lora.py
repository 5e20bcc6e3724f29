"""How a distillation LoRA is named that makes the target: a file, its strength, and which LoRA of the file is meant.

In text: FILE, FILE:STRENGTH, and behind that any of expert, adapter and scale: `pair.safetensors:0.8:expert=high`.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from loraport.errors import UsageError
from loraport.settings import PathText, Setting, Settings

OPTIONS = ("scale", "expert", "adapter")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


class AddedLora(Settings):
    """One distillation LoRA, as it goes into the target: strength times its update. Raises UsageError."""

    file: Annotated[PathText, Setting("The LoRA: a file, a folder, or zoo:NAME.", path=True)]
    strength: Annotated[float, Field(allow_inf_nan=True), Setting("How strong it is taken; may be negative.")] = 1.0
    scale: Annotated[
        float | None,
        Field(gt=0.0),
        Setting("Its own scale, alpha / rank, where its file does not say it or says it wrong."),
    ] = None
    expert: Annotated[
        Literal["high", "low"] | None, Setting("Which of its LoRAs, where the file holds those of both Wan2.2 experts.")
    ] = None
    adapter: Annotated[str | None, Setting("Which of its LoRAs, where the file holds several by name.")] = None

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> "AddedLora":
        """Read FILE[:STRENGTH][:NAME=VALUE]. A file that is there under the longer name is meant by it.

        Raises:
            UsageError: an option that is not known, or a strength that is no number.
        """
        name = os.fspath(text)
        settings: dict[str, Any] = {}
        while not _exists(name):  # a colon may be part of the name (C:\...)
            head, colon, tail = name.rpartition(":")
            if not head or not colon or head == "zoo":
                break
            option, sign, value = tail.partition("=")
            if sign and option in OPTIONS and option not in settings:
                settings[option] = value
            elif _NUMBER.fullmatch(tail) and "strength" not in settings:
                settings["strength"] = tail
            else:
                break
            name = head
        _refuse_rest(name)
        return cls(file=name, **settings)

    def check(self) -> None:
        """Refuse a strength that is no finite number. Raises UsageError."""
        if not math.isfinite(self.strength):
            raise UsageError(
                "the strength of the distillation LoRA is no number",
                where=self.file,
                values=str(self.strength),
                fix=f"give a finite one, such as {self.file}:0.8",
            )

    @property
    def identity(self) -> tuple[str, str | None, str | None]:
        """What is one and the same LoRA: the place of the file, however it was named, and the choice in it."""
        return os.path.realpath(self.file) if _exists(self.file) else self.file, self.expert, self.adapter


def added_loras(given: Any) -> Any:
    """A validator: one distillation LoRA or several, each as text, as a path, or as settings by name."""
    if given is None:
        return ()
    one = (str, os.PathLike, AddedLora, Mapping)
    several = (given,) if isinstance(given, one) or not isinstance(given, Sequence) else given
    for each in several:
        if not isinstance(each, one):
            raise ValueError(f"a file or a table with its name is needed, not {type(each).__name__}")
    return tuple(AddedLora.parse(each) if isinstance(each, (str, os.PathLike)) else each for each in several)


def _refuse_rest(name: str) -> None:
    """What stands behind a file that is there is a mistake; elsewhere `few.safetensors=0.5` is a way to say it."""
    if _exists(name):
        return
    head, sign, tail = name.rpartition(":")
    if sign and head and _exists(head):
        raise UsageError(
            "what stands behind the name of a distillation LoRA is not understood",
            where=head,
            values=tail or "nothing",
            fix=f"FILE:STRENGTH, and behind that each once: {', '.join(f'{option}=...' for option in OPTIONS)}",
        )
    head, sign, tail = name.rpartition("=")
    if sign and _NUMBER.fullmatch(tail) and (_exists(head) or Path(head).suffix):
        raise UsageError(
            "the strength of a distillation LoRA stands behind a colon", values=name, fix=f"write {head}:{tail}"
        )


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # a name that cannot be one is refused where it is opened
        return False
