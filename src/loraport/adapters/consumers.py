"""Programs that load LoRAs, as the rows of consumers.yaml have it: what each makes of a file, and how it is loaded."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Any

from loraport.adapters.dialect import PROFILES, SAME_AS_INPUT, Dialect
from loraport.adapters.passthrough import Passthrough
from loraport.models.architecture import Architecture, LayerName
from loraport.models.family import Family, block_of
from loraport.models.keys import read_yaml

ALL = "all"
ADDED, ARRIVES = "added", "arrives"  # the one part of which it is said that it arrives, since few have looked
_NO_PROFILES = {"load", "shift", "looked_at"}  # what else a family's entry says
# Parts of a file, as they are called in sentences and in the tables.
PARTS = {
    "partial": "layers missing in its blocks",
    "outside": "layers outside the blocks",
    "reordered": "layers with rows in another order",
    "image": "image projections",
    "added": "layers that only variants have",
    "bias": "biases",
    "norm": "norms/convolutions",
    "modulation": "modulation",
    "text_encoder": "keys of a text encoder",
}
_CARRIED_AS = {"bias": "bias", "norm": "weight", "modulation": "param"}  # keys of Profile.carries
HOW = {"run": "run", "part": "part run, part read", "read": "read"}  # how a version was looked at
OUTCOMES = {
    "quiet": "left out without a word",
    "warning": "left out, with a line in the log",
    "count": "left out, only a number is shown",
    "outside": "left out outside the blocks, without a word",
    "error": "the whole file is refused",
    "wrong": "applied wrongly",
    "unknown": "not looked at",
}


@dataclass(frozen=True)
class Outcome:
    """What a program does with a part of a file that does not arrive as it should.

    Args:
        word: a key of OUTCOMES.
        remark: what one word does not say.
        arrives: a regular expression for the canonical parameters of that part that arrive all the same.
    """

    word: str
    remark: str = ""
    arrives: str = ""

    def concerns(self, param: str) -> bool:
        """Whether it is the outcome of a parameter of its part."""
        if self.word == "outside" and block_of(param):
            return False
        return not (self.arrives and re.search(self.arrives, param))

    @property
    def refused(self) -> bool:
        """Whether the whole file is refused for it."""
        return self.word == "error"

    @property
    def wrong(self) -> bool:
        """Whether it changes the model, but not as it is meant."""
        return self.word == "wrong"


@dataclass(frozen=True)
class Support:
    """What a program makes of the LoRAs of one family.

    Args:
        load: how a file is loaded at strength 1, with {path} and {name} to fill in.
        profiles: output profile -> part that does not arrive (or ALL) -> what happens instead.
        looked_at: as of the program, where it is another version or another way for this family.
        shift: how the time shift of a model is set, with {shift} to fill in; "" where nobody has looked.
    """

    load: str
    profiles: dict[str, dict[str, Outcome]]
    looked_at: dict[str, str] = field(default_factory=dict)
    shift: str = ""


def filled(load: str, path: PurePath) -> str:
    """A way to load with the file in it, in quotes, and with slashes on Windows too: no program doubles those."""
    return load.replace("{path}", json.dumps(path.as_posix(), ensure_ascii=False)).replace("{name}", path.name)


@dataclass(frozen=True, eq=False)  # a row is itself, so that it can be a key
class Consumer:
    """A program that loads LoRAs: one row.

    Args:
        name: of the program, with what sets this row apart in brackets.
        also: programs that hand LoRAs to this one's loader -> the version that was looked at, and where.
        looked_at: version -> "run", "part" (part run, part read) or "read".
        scale: what it multiplies an update with at strength 1.
        common: whether it is named first.
        families: family of models -> what it makes of its LoRAs.
    """

    name: str
    looked_at: dict[str, str]
    scale: float
    common: bool
    families: dict[str, Support]
    also: dict[str, str] = field(default_factory=dict)

    @property
    def program(self) -> str:
        """The name without the brackets."""
        return self.name.partition(" (")[0]


@dataclass(frozen=True)
class Content:
    """What of a file decides who takes it.

    Args:
        family: of models.
        profile: the column of the rows that it belongs to; None where no row speaks of its spelling.
        parts: the parts it has -> whether some of that lies outside the blocks.
        mixed_ranks: whether its ranks differ from layer to layer.
        as_input: whether its names are those of the input.
    """

    family: str
    profile: str | None
    parts: dict[str, bool] = field(default_factory=dict)
    mixed_ranks: bool = False
    as_input: bool = False

    def reading(self, consumer: Consumer) -> Support | None:
        """What a program makes of such files, or None where nobody has looked."""
        reading = consumer.families.get(self.family)
        return reading if reading is not None and self.profile in reading.profiles else None

    def row(self, consumer: Consumer) -> Mapping[str, Outcome] | None:
        """The same of the spelling: what does not arrive."""
        reading = self.reading(consumer)
        return None if reading is None or self.profile is None else reading.profiles[self.profile]

    def reads(self, consumer: Consumer) -> bool:
        """Whether a program reads the spelling at all, as far as anybody has looked."""
        row = self.row(consumer)
        return row is not None and ALL not in row

    def losses(self, consumer: Consumer) -> dict[str, Outcome]:
        """The parts of this file that a program is known not to take, with what happens instead."""
        return self.losses_in(self.row(consumer) or {})

    def losses_in(self, row: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """The same for one profile of a program."""
        return {
            part: row[part]
            for part, outside in self.parts.items()
            if part in row and row[part].word != "unknown" and (outside or row[part].word != "outside")
        }

    def unknown(self, consumer: Consumer) -> bool:
        """Whether nobody has looked at what a program makes of some part of this file."""
        row = self.row(consumer) or {}
        return any(part in row and row[part].word == "unknown" for part in self.parts)


def content_of(
    profile: str,
    ranks: Mapping[LayerName, int],
    passthrough: Iterable[Passthrough],
    architecture: Architecture,
    dialect: Dialect | None = None,
) -> Content:
    """What of a file decides who takes it.

    Args:
        profile: the output profile.
        ranks: canonical layer -> rank, of everything that is written as factors.
        passthrough: what is passed on.
        architecture: the model the file is for.
        dialect: the spelling of a file "same-as-input".
    """
    family = architecture.family
    passthrough = list(passthrough)
    parts: dict[str, bool] = {}

    def has(part: str, module: str = "") -> None:
        parts[part] = parts.get(part, False) or not block_of(module)

    for name in ranks:
        for part in parts_of_layer(name, family):
            has(part, name)
    for item in passthrough:
        part = part_of_change(item, architecture)
        has(part, "" if part == "text_encoder" else item.module)
    blocks = {int(block_of(name)) for name in ranks if block_of(name) and not family.is_added(name)}
    if any(int(block_of(name)) <= max(blocks, default=-1) for name in _whole_blocks(architecture) - ranks.keys()):
        has("partial")
    known: str | None = profile
    if profile == SAME_AS_INPUT:
        biased = {item.module for item in passthrough if architecture.role(item.module) == "linear"}
        complete = biased in (set(), set(ranks)) and not any(item.kind == "diff_m" for item in passthrough)
        known = _profile_of_spelling(dialect, complete, family)
    return Content(family.name, known, parts, len(set(ranks.values())) > 1, profile == SAME_AS_INPUT)


def parts_of_layer(name: LayerName, family: Family) -> list[str]:
    """The parts of a file that a layer written as factors belongs to; none for an ordinary one inside the blocks."""
    template = family.template_of(name)
    found = []
    if family.is_added(name):
        found.append(ADDED)
    elif not block_of(name):
        found.append("outside")
    elif template is not None and template.optional:
        found.append("image")
    if template is not None and any(place.order or place.turn for place in template.places.values()):
        found.append("reordered")
    return found


def part_of_change(item: Passthrough, architecture: Architecture) -> str:
    """The part of a file that something passed on belongs to."""
    if item.kind == "text_encoder":
        return "text_encoder"
    return {"param": "modulation", "linear": "bias"}.get(architecture.role(item.module) or "", "norm")


def writable(profile: str, part: str) -> bool:
    """Whether a profile has a spelling for a part of a file; what it has none for is refused before it is written."""
    return part not in _CARRIED_AS or profile == SAME_AS_INPUT or _CARRIED_AS[part] in PROFILES[profile].carries


@cache
def consumers() -> tuple[Consumer, ...]:
    """All rows, in their order. Raises ValueError for a row that says what no reader of it understands."""
    text = (resources.files("loraport.adapters") / "consumers.yaml").read_text("utf-8")
    return tuple(_consumer(row) for row in read_yaml(text))


def _whole_blocks(architecture: Architecture) -> set[str]:
    """Every linear layer of every block up to the last one known, the optional ones aside."""
    family = architecture.family
    found = set()
    for name in architecture.expected:
        template = family.template_of(name)
        in_blocks = template is not None and template.repeated and template.role == "linear" and not template.optional
        if in_blocks and not family.is_added(name):
            found.add(name)
    return found


def _profile_of_spelling(dialect: Dialect | None, complete: bool, family: Family) -> str | None:
    """The column for a file that keeps the spelling of its input.

    Args:
        dialect: of the input.
        complete: whether its biases and its modulation are as `universal` would write them.
        family: of models.
    """
    found = next((name for name, profile in PROFILES.items() if profile.of(family).dialect == dialect), None)
    return SAME_AS_INPUT if found == "universal" and not complete else found


def _consumer(row: dict[str, Any]) -> Consumer:
    families = {
        family: Support(
            said["load"],
            {profile: _row(cells, row["name"]) for profile, cells in said.items() if profile not in _NO_PROFILES},
            said.get("looked_at", {}),
            said.get("shift", ""),
        )
        for family, said in row["families"].items()
    }
    looked_at = {str(version): str(how) for version, how in row["looked_at"].items()}
    return Consumer(row["name"], looked_at, float(row["scale"]), bool(row.get("common")), families, row.get("also", {}))


def _row(cells: Mapping[str, Any], name: str) -> dict[str, Outcome]:
    found = {}
    for part, said in cells.items():
        word, remark, arrives = [*said, "", ""][:3] if isinstance(said, list) else (said, "", "")
        if part == ADDED and word == ARRIVES:
            continue
        if part not in {*PARTS, ALL} or word not in OUTCOMES:
            raise ValueError(f"consumers.yaml, {name}: {part}: {word} is not understood")
        found[part] = Outcome(word, remark, arrives)
    if ADDED not in cells and ALL not in cells:
        found[ADDED] = Outcome("unknown")
    return found
