"""Well-known distilled models (`distilled.yaml`): which one a name means, how it is sampled and how it was made."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from loraport.adapters.header import read_table
from loraport.containers.access import kind_of
from loraport.containers.safetensors import read_header
from loraport.errors import FileError
from loraport.models.keys import read_yaml
from loraport.wording import count

_TITLE = "modelspec.title"  # of a header
_CONFIGS = ("config.json", "model_index.json")  # of diffusers
_CALLED = "_name_or_path"  # in them
_BEFORE = r"(?:(?:wan\d*|[a-z]?\d+[a-z]?|t2v|i2v|ti2v)-+)*"  # as in Wan2_1-T2V-1_3B-Self-Forcing
_HUB = re.compile(r"models--([^/\\]+)")


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A distilled model that is known by its name.

    Attributes:
        name: for people.
        family: of its source.
        pattern: what a file, folder or repository of it is called, lower case with - for _ and dots: from the first
            word on, before which the names of the source, of its size and of its task may stand.
        steps: sampling steps, at even times; None where `times` are given.
        times: the time steps, from 1000 down; () for even ones.
        shift: of even times, towards the noise; None for the scheduler's own.
        guidance: what the pipeline of diffusers is called with.
        sampler: as in `loraport.sampling.schedule.Schedule`.
        causal: whether it makes one group of frames after the other.
        seen: who says so.
        made: kind of distillation, and who says so; None where nobody does.
    """

    name: str
    family: str
    pattern: re.Pattern[str]
    steps: int | None = None
    times: tuple[float, ...]
    shift: float | None = None
    guidance: float
    sampler: Literal["euler", "renoise"] = "euler"
    causal: bool = False
    seen: str
    made: tuple[str, str] | None

    @property
    def count(self) -> int:
        """Sampling steps."""
        return len(self.times) or self.steps or 0

    @property
    def how(self) -> str:
        """How it is sampled, in words."""
        times = f"at the times {', '.join(f'{time:g}' for time in self.times)} (of 1000)" if self.times else ""
        shift = f", shift {self.shift:g}" if self.shift is not None else ""
        off = "guidance off" if self.guidance in (0, 1) else f"guidance {self.guidance:g}"
        fresh = ", with fresh noise at each step" if self.sampler == "renoise" else ""
        causal = ", one group of frames after the other" if self.causal else ""
        return f"{times or count(self.steps or 0, 'step')}{shift}, {off}{fresh}{causal}"


@cache
def distilled_models() -> tuple[Distilled, ...]:
    """All of them, in the order in which they are tried."""
    rows = read_yaml((resources.files("loraport.adapters") / "distilled.yaml").read_text("utf-8"))
    return tuple(_read(row) for row in rows)


def _read(row: dict[str, Any]) -> Distilled:
    pattern = re.compile(rf"(?:^|/){_BEFORE}(?:{row['pattern']})(?![a-z0-9])")
    times, made = tuple(map(float, row.get("times", ()))), row.get("made")
    return Distilled(**{**row, "pattern": pattern, "times": times, "made": made and (made[0], made[1])})


def known_model(names: Iterable[str | Path], family: str | None = None) -> Distilled | None:
    """The model that one of the names means; None where none is known.

    Args:
        names: of folders, files, repositories, or what a header says; of a path the last two parts count.
        family: of the model, so that a name is not taken for one of another family; None for any.
    """
    plain = [_plain(name) for name in names]
    rows = [row for row in distilled_models() if family in (None, row.family)]
    return next((row for row in rows if any(row.pattern.search(name) for name in plain)), None)


def _plain(name: str | Path) -> str:
    hub = _HUB.search(str(name))  # a download: its own parts are called by commits
    end = hub[1].replace("--", "/") if hub else "/".join(Path(name).parts[-2:])
    return re.sub(r"[_.]", "-", end.lower())


def names_of(path: Path, *said: str | None) -> Sequence[str]:
    """What a model or a LoRA on the disk is called: by the user, by its path, by its configuration and its header.

    Args:
        path: the file, or the folder.
        said: what the user called it.
    """
    return [name for name in dict.fromkeys([*(each for each in said if each), str(path), *_told(path)]) if name]


def _told(path: Path) -> Iterator[str]:
    for name in _CONFIGS:
        for folder in (path, path.parent):
            found = read_table(folder / name)
            yield str(found.get(_CALLED) or "")
    if path.suffix == ".safetensors" and kind_of(path) == "file":
        try:
            yield read_header(path).metadata.get(_TITLE, "")
        except FileError:
            return  # it is opened elsewhere, where that is said
