"""How to name a LoRA that is part of the target or of the source: a file, its strength, and which LoRA of the file.

In text: FILE or FILE:STRENGTH, then any of expert, adapter and scale: `pair.safetensors:0.8:expert=high`.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from loraport.errors import UsageError, did_you_mean
from loraport.settings import PathText, Setting, Settings
from loraport.windows import is_drive

OPTIONS = ("scale", "expert", "adapter")
_ENDING = re.compile(r"\.[A-Za-z]\w*")  # that of "few.pt", and not what stands behind the dot of "wan2.1"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


class AddedLora(Settings):
    """One LoRA that is part of the target or of the source: strength times its update. Raises UsageError."""

    file: Annotated[PathText, Setting("LoRA: a file, a folder, or zoo:NAME.", path=True)]
    strength: Annotated[
        float, Field(allow_inf_nan=True), Setting("Strength at which it is added; may be negative.")
    ] = 1.0
    scale: Annotated[
        float | None,
        Field(gt=0.0),
        Setting("Its own scale (alpha / rank), if its file does not state it or states it wrongly."),
    ] = None
    expert: Annotated[
        Literal["high", "low"] | None, Setting("Wan2.2 expert whose LoRA to use, if the file holds both.")
    ] = None
    adapter: Annotated[str | None, Setting("Name of the LoRA to use, if the file holds several.")] = None

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> "AddedLora":
        """Read FILE[:STRENGTH][:NAME=VALUE]. If a file with the longer name exists, it is that file.

        Raises:
            UsageError: an unknown option, or a strength that is not a number.
        """
        name = os.fspath(text)
        settings: dict[str, Any] = {}
        while not _exists(name):  # a colon may be part of the name
            head, _, tail = name.rpartition(":")
            if not head or head == "zoo" or is_drive(head, tail):
                break
            option, sign, value = tail.partition("=") if "=" in tail else ("strength", "", tail)
            told = option.isidentifier() if sign else _NUMBER.fullmatch(tail)
            if not told and not _is_file(head):
                break
            if not told or option in settings or option not in (*OPTIONS, "strength"):
                raise _not_understood(head, tail)
            settings[option] = value
            name = head
        _refuse_equals(name)
        return cls(file=name, **settings)

    def check(self) -> None:
        """Refuse a strength that is not a finite number. Raises UsageError."""
        if not math.isfinite(self.strength):
            raise UsageError(
                "the strength of a LoRA is not a number",
                where=self.file,
                values=str(self.strength),
                fix=f"give a finite one, such as {self.file}:0.8",
            )

    @property
    def identity(self) -> tuple[str, str | None, str | None]:
        """What makes it the same LoRA as another: the place of the file, however it was named, and the choice in it."""
        return os.path.realpath(self.file) if _exists(self.file) else self.file, self.expert, self.adapter


def added_loras(given: Any) -> Any:
    """A validator: one LoRA or several, each as text, as a path, or as settings by name."""
    if given is None:
        return ()
    one = (str, os.PathLike, AddedLora, Mapping)
    several = (given,) if isinstance(given, one) or not isinstance(given, Sequence) else given
    for each in several:
        if not isinstance(each, one):
            raise ValueError(f"give a file, or a table with its name, not {type(each).__name__}")
    return tuple(AddedLora.parse(each) if isinstance(each, (str, os.PathLike)) else each for each in several)


def _not_understood(file: str, tail: str) -> UsageError:
    near = did_you_mean(tail.partition("=")[0], OPTIONS)
    form = f"write FILE:STRENGTH, then each of these at most once: {', '.join(f'{option}=...' for option in OPTIONS)}"
    return UsageError(
        "what follows the name of a LoRA is not understood",
        where=file,
        values=tail or "nothing",
        fix=f"{near} {form}" if near else form,
    )


def _refuse_equals(name: str) -> None:
    """`few.safetensors=0.5` is a way to say it, unless a file has that name."""
    head, sign, tail = name.rpartition("=")
    if sign and not _exists(name) and _NUMBER.fullmatch(tail) and _is_file(head):
        raise UsageError("the strength of a LoRA goes after a colon", values=name, fix=f"write {head}:{tail}")


def _is_file(name: str) -> bool:
    """Whether it is there, or has the ending of a file that should be."""
    return _exists(name) or bool(_ENDING.fullmatch(Path(name).suffix))


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # a name that cannot be one is refused where it is opened
        return False
