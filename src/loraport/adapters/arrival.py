"""What of one file would arrive in one program: its keys, one by one, held against the program's row."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.consumers import (
    ALL,
    Consumer,
    Outcome,
    Support,
    consumers,
    filled,
    part_of_change,
    parts_of_layer,
    writable,
)
from loraport.adapters.dialect import SAME_AS_INPUT
from loraport.errors import UsageError, did_you_mean
from loraport.wording import count

FULL, PART, REFUSED, UNREAD, UNKNOWN = "in full", "in part", "refused", "not read", "not looked at"
_NAMES = 6  # layers that a regular expression lists before it gets too long to be typed
_Row = Mapping[str, Outcome]


@dataclass(frozen=True)
class Loss:
    """Keys that do not arrive as they are meant, for one reason.

    Args:
        part: of the file, a key of PARTS, or ALL.
        outcome: what happens instead.
        keys: raw keys.
    """

    part: str
    outcome: Outcome
    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """A layer or a change that is passed on.

    Args:
        keys: raw keys.
        module: canonical module path.
        param: canonical name of the parameter it changes.
        parts: of the file that it belongs to.
    """

    keys: tuple[str, ...]
    module: str
    param: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Arrival:
    """What a program would make of a file, going by its row; nothing of the program is run.

    Args:
        lora: the file.
        consumer: the program.
    """

    lora: LoraAdapter
    consumer: Consumer

    @property
    def reading(self) -> Support | None:
        """The program's entry for the family and the spelling; None where nobody has looked."""
        return self.lora.content.reading(self.consumer)

    @property
    def looked_at(self) -> dict[str, str]:
        """Version -> "run", "part" or "read", of that entry."""
        return (self.reading.looked_at if self.reading else {}) or self.consumer.looked_at

    @cached_property
    def losses(self) -> tuple[Loss, ...]:
        """What does not arrive, in the order of the parts; parts that nobody looked at are among them."""
        found: dict[str, list[str]] = {}
        for entry in self._entries:
            part = _lost(entry, self._row)
            if part:
                found.setdefault(part, []).extend(entry.keys)
        if "partial" in self.lora.content.parts and "partial" in self._row:
            found["partial"] = []
        return tuple(
            Loss(part, self._row[part], tuple(dict.fromkeys(found[part]))) for part in self._row if part in found
        )

    @property
    def verdict(self) -> str:
        """One of FULL, PART, REFUSED, UNREAD, UNKNOWN."""
        if self.reading is None:
            return UNKNOWN
        if any(loss.outcome.refused for loss in self.losses):
            return REFUSED
        if not self.matched:
            return UNKNOWN if all(loss.outcome.word == "unknown" for loss in self.losses) else UNREAD
        return PART if any(loss.outcome.word != "unknown" for loss in self.losses) else FULL

    @property
    def summary(self) -> str:
        """The verdict with the number of keys, in a few words."""
        return f"{self.verdict}: {len(self.matched)} of {count(len(self.lora.keys), 'key')}"

    @property
    def matched(self) -> tuple[str, ...]:
        """The keys that change the model as they are meant, in the order of the file."""
        if self.reading is None or any(loss.outcome.refused for loss in self.losses):
            return ()
        lost = {key for loss in self.losses for key in loss.keys} | set(self.lora.dropped)
        return tuple(key for key in self.lora.keys if key not in lost)

    @property
    def scales(self) -> tuple[float, ...]:
        """What the updates would be multiplied with at strength 1: the program's factor times alpha / rank."""
        own = {layer.scale for layer in self.lora.layers.values()} or {1.0}
        return tuple(sorted(self.consumer.scale * scale for scale in own)) if self.matched else ()

    @property
    def arrives(self) -> bool | None:
        """Whether everything arrives; None where nobody has looked at some of it and the rest does."""
        if self.reading is None:
            return None
        amiss = [loss for loss in self.losses if loss.outcome.word != "unknown"]
        return False if amiss else None if self.losses else True

    @property
    def remedy(self) -> str:
        """A command that makes a file of which more arrives; "" where there is none, or no need."""
        if self.arrives is not False and self.reading is not None:
            return ""
        best, least = "", len(self._entries) - self._arriving
        reading = self.consumer.families.get(self.lora.content.family)
        for profile, row in reading.profiles.items() if reading is not None else ():
            if profile == SAME_AS_INPUT or ALL in row or {"partial"} & row.keys() & self.lora.content.parts.keys():
                continue
            aside = [entry for entry in self._entries if _must_stay_out(entry, row, profile)]
            drop = self._pattern(aside)
            lost = sum(entry in aside or bool(_lost(entry, row)) for entry in self._entries)
            if lost < least and drop is not None:
                best, least = self._command(profile, drop), lost
        return best

    @property
    def load(self) -> str:
        """How the file is loaded at strength 1."""
        return "" if self.reading is None else filled(self.reading.load, self.lora.path)

    @cached_property
    def _row(self) -> _Row:
        return self.lora.content.row(self.consumer) or {}

    @cached_property
    def _entries(self) -> tuple[_Entry, ...]:
        architecture = self.lora.architecture
        layers = [
            _Entry(layer.keys, name, f"{name}.weight", tuple(parts_of_layer(name, architecture.family)))
            for name, layer in self.lora.layers.items()
        ]
        changes = [
            _Entry(item.keys, item.module, item.param, (part_of_change(item, architecture),))
            for item in self.lora.passthrough
        ]
        return (*layers, *changes)

    @property
    def _arriving(self) -> int:
        """How many layers and changes arrive."""
        return sum(not _lost(entry, self._row) for entry in self._entries) if self.matched else 0

    def _pattern(self, entries: list[_Entry]) -> str | None:
        """A regular expression for `--drop` that leaves out these alone; "" for none, None where none is short."""
        if not entries:
            return ""
        endings = sorted({re.escape(key.rpartition(".")[2]) for entry in entries for key in entry.keys})
        modules = sorted({re.escape(entry.module) for entry in entries})
        for pattern in (rf"\.({'|'.join(endings)})$", f"^({'|'.join(modules[:_NAMES])})$"):
            found = [
                entry for entry in self._entries
                if re.search(pattern, entry.module) or any(re.search(pattern, key) for key in entry.keys)
            ]  # fmt: skip
            if found == entries:
                return pattern
        return None

    def _command(self, profile: str, drop: str) -> str:
        path = self.lora.path
        words = ["loraport", "convert", str(path), "--to", profile]
        words += ["--drop", drop] if drop else []
        words += ["--architecture", self.lora.content.family] if self.lora.others else []
        words += ["--model", "MODEL"] if any(layer.needs_source for layer in self.lora.layers.values()) else []
        return shlex.join([*words, "-o", str(path.with_name(f"{path.stem}-{profile}.safetensors"))])


def rows_of(name: str) -> list[Consumer]:
    """The rows of a program by its name, whatever its case; those of its versions and ways where no row is called so.

    Raises:
        UsageError: there is none, with the nearest name.
    """
    wanted = name.casefold()
    for called in (lambda row: [row.name], lambda row: [row.program, *row.also]):
        if found := [row for row in consumers() if wanted in map(str.casefold, called(row))]:
            return found
    known = dict.fromkeys(title for row in consumers() for title in (row.program, *row.also))
    near = did_you_mean(wanted, [title.casefold() for title in known])
    listed = f"known programs: {', '.join(known)}"
    raise UsageError(f"no program named {name!r} is known here", fix=f"{near} {listed}" if near else listed)


def _lost(entry: _Entry, row: _Row) -> str:
    """The part because of which something does not arrive; "" if it does."""
    return next((part for part in (*entry.parts, ALL) if part in row and row[part].concerns(entry.param)), "")


def _must_stay_out(entry: _Entry, row: _Row, profile: str) -> bool:
    """Whether the rest can be written and loaded without something alone."""
    outcome = row.get(_lost(entry, row))
    amiss = outcome is not None and (outcome.refused or outcome.wrong)
    return amiss or not all(writable(profile, part) for part in entry.parts)
