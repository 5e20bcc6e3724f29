"""From any spelling of a module to the canonical modules that it holds, by a table of the family's templates.

Flattened names cannot be un-flattened by rule (`self_attn`, `k_img`, `to_out.0` hold underscores and digits of their
own), so every spelling of every template is written out once, with the block number as "<>", and looked up.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache, lru_cache

from loraport.errors import LoraportError
from loraport.models.families import families, recognised
from loraport.models.family import REMEMBERED, Family, numbered
from loraport.models.keys import key_rules
from loraport.models.placement import Part, is_whole

MAX_PREFIXES = 8  # no more than this many prefixes one after the other are taken off
LONGEST = 1000  # characters of a path that may be a name
MAX_PATH = 200  # characters of an unknown path that are compared with the known ones
MIXED = "mixed"  # the naming of aliases, which follow none
_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Resolved:
    """A module path as written, taken apart.

    Args:
        prefix: what stands before the module path.
        flat: whether its dots are written as underscores.
        parts: the canonical modules that the named weight holds, in the order of its rows; one, except in a fused one.
        spelled: the path without the prefix.
        namings: the namings that write it so.
        expert: "high" or "low" where the prefix names an expert.
    """

    prefix: str
    flat: bool
    parts: tuple[Part, ...]
    spelled: str
    namings: frozenset[str]
    expert: str | None = None

    @property
    def module(self) -> str:
        """The canonical module; of a fused weight the first."""
        return self.parts[0].module

    @property
    def whole(self) -> bool:
        """Whether the named weight is one module as it is, neither fused nor in another order."""
        return is_whole(self.parts)


@dataclass(frozen=True)
class Spelling:
    """What a path names: modules with "<n>" for the block number, whose letter is `counter`, and who writes it so."""

    parts: tuple[Part, ...]
    counter: str
    namings: frozenset[str]

    def at(self, number: int | None) -> tuple[Part, ...]:
        """The modules in one block."""
        if number is None:
            return self.parts
        return tuple(replace(p, module=p.module.replace(f"<{self.counter}>", str(number))) for p in self.parts)


@dataclass(frozen=True)
class KeyMap:
    """Spelling tables of a family: dotted and flattened paths, the block number as "<>".

    Args:
        dotted: what a path with dots names.
        flat: what one with underscores for dots names.
        alike: naming -> path, dotted or flat -> what it names there, where that is something else than in `dotted`:
            the same layers in other rows.
    """

    dotted: dict[str, Spelling]
    flat: dict[str, Spelling]
    alike: dict[str, dict[str, Spelling]] = field(default_factory=dict)
    _known: dict[tuple[str, str], Resolved | None] = field(default_factory=dict, repr=False, compare=False)

    def resolve(self, path: str, naming: str = "") -> Resolved | None:
        """Take a module path with its prefixes apart, or None if it names no module of the family.

        Any chain of known prefixes is taken off when what is left names a module exactly. Answers are remembered: the
        files of a job name the same modules.

        Args:
            path: of a module, in any naming.
            naming: which naming it is of, where that is known and another has the same names.
        """
        asked = (path, naming)
        if asked not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[asked] = self._resolve(path, naming)
        return self._known[asked]

    def _resolve(self, path: str, naming: str) -> Resolved | None:
        own = self.alike.get(naming, {})
        for prefix, rest, flat, expert in _peeled(path) if len(path) <= LONGEST else ():
            table, separator = (self.flat, "_") if flat else (self.dotted, ".")
            for pattern, number in _patterns(rest, separator):
                found = own.get(pattern) or table.get(pattern)
                if found is not None and (found.counter == "") == (number is None):
                    return Resolved(prefix, flat, found.at(number), rest, found.namings, expert)
        return None

    def held(self, path: str, naming: str = "") -> tuple[Part, ...]:
        """The modules in a stored weight, by its path without a prefix. Raises KeyError for no such.

        Args:
            path: of the stored module.
            naming: which naming it is of, where another has the same names.
        """
        found = self.resolve(path, naming)
        if found is None or found.prefix:
            raise KeyError(path)
        return found.parts

    def nearest(self, path: str) -> str | None:
        """The known spelling most like an unknown path, with the path's own prefixes, or None.

        Costs a comparison with every template; for messages, not for every key of a file.
        """
        path = path[:MAX_PATH]
        prefix, rest, flat, _ = list(_peeled(path))[-1]
        table, separator = (self.flat, "_") if flat else (self.dotted, ".")
        pattern, number = next(iter(numbered(rest, separator)), (rest, 0))
        close = get_close_matches(pattern, table, n=1, cutoff=0.5)
        return prefix + close[0].replace("<>", str(number)) if close else None


def build(family: Family) -> KeyMap:
    """The tables of a family.

    Raises:
        LoraportError: two modules share a spelling, so that names could not be told apart, or the parts of a fused
            weight are not counted 0, 1, 2. The tables of the families that are built in are tested against this;
            it guards new yaml files.
    """
    dotted: dict[str, Spelling] = {}
    flat: dict[str, Spelling] = {}
    alike: dict[str, dict[str, Spelling]] = {}
    for naming in family.namings:
        stored: dict[str, dict[int | None, Part]] = {}
        counters: dict[str, str] = {}
        for name, template in family.templates.items():
            place = template.places[naming]
            parts = stored.setdefault(place.name, {})
            pieces = (place.index, *place.more)
            rows = _share(template.shape[0] if template.shape else "1", len(pieces))
            for index in pieces:
                if index in parts or (parts and None in {index, *parts}):
                    raise LoraportError(
                        f"{place.name} would name two modules", values=f"{name} among them, in {naming}"
                    )
                parts[index] = Part(name, rows, place.order, place.turn)
            counters[place.name] = template.counter
        for spelled, parts in stored.items():
            ordered = [parts[index] for index in sorted(parts, key=lambda index: index or 0)]
            if None not in parts and sorted(index or 0 for index in parts) != list(range(len(parts))):
                raise LoraportError(
                    f"the parts of {spelled} are not counted from 0", values=str(sorted(map(str, parts)))
                )
            spelling = Spelling(tuple(ordered), counters[spelled], frozenset({naming}))
            own = alike.setdefault(naming, {}) if naming in family.alike else None
            _add(dotted, flat, spelled, spelling, own)
    for alias, names in family.aliases.items():
        held = tuple(Part(name, family.templates[name].shape[0]) for name in names)
        _add(dotted, flat, alias, Spelling(held, family.templates[names[0]].counter, frozenset({MIXED})))
    return KeyMap(dotted, flat, alike)


@lru_cache(maxsize=64)
def keymap_of(family: Family) -> KeyMap:
    """The tables of a family, made once."""
    return _by_name(family) if family.unnamed else build(family)


def _by_name(family: Family) -> KeyMap:
    """The tables of a family whose modules have one name each. What would be flattened to one path is not in `flat`."""
    namings = frozenset(family.namings)
    dotted = {name: Spelling((Part(name, "1"),), "", namings) for name in family.templates}
    times = Counter(name.replace(".", "_") for name in dotted)
    flat = {path: spelling for name, spelling in dotted.items() if times[path := name.replace(".", "_")] == 1}
    return KeyMap(dotted, flat)


def longest_prefix(path: str) -> str:
    """All that stands before a path and is no part of a module's name."""
    return [prefix for prefix, _, flat, _ in _peeled(path) if not flat][-1]


def known_to(path: str) -> frozenset[str]:
    """The names of the families, those that are only recognised too, that have a module of that path.

    Prefixes are taken off as `KeyMap.resolve` does, and no more of them than it takes: what may be a block of
    "transformer_blocks" is not a block of "blocks" behind "transformer_". One look-up for all families: a path is taken
    apart once, however many there are.
    """
    if len(path) > LONGEST:
        return _NOBODY
    tables = _owners()
    for _, rest, flat, _ in _peeled(path):
        table, separator = (tables[1], "_") if flat else (tables[0], ".")
        found = frozenset().union(*(table.get(pattern, _NOBODY) for pattern, _ in _patterns(rest, separator)))
        if found:
            return found
    return _NOBODY


@cache
def _owners() -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """Dotted and flat paths, the block number as "<>" -> the families that have them."""
    owners: tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]] = ({}, {})
    for name, family in {**recognised(), **families()}.items():
        for path in family.paths():
            for table, pattern in zip(owners, (path, path.replace(".", "_")), strict=True):
                table[pattern] = table.get(pattern, _NOBODY) | {name}
    return owners


def _share(rows: str, pieces: int) -> str:
    """The rows of each of several equal pieces, in symbols: half of "6*width" is "3*width"."""
    if pieces == 1:
        return rows
    times, _, symbol = rows.rpartition("*")
    if int(times or 1) % pieces:
        raise LoraportError(f"{rows} rows cannot be split into {pieces} equal pieces")
    return f"{int(times) // pieces}*{symbol}"


def _patterns(path: str, separator: str) -> Iterator[tuple[str, int | None]]:
    """A path as it is, and with each of its numbers written as "<>"."""
    yield path, None
    yield from numbered(path, separator)


def _add(
    dotted: dict[str, Spelling],
    flat: dict[str, Spelling],
    spelled: str,
    spelling: Spelling,
    own: dict[str, Spelling] | None = None,
) -> None:
    """Enter a spelling into the tables; where others have its name for other rows, into `own` if there is one."""
    path = spelled.replace(f"<{spelling.counter}>", "<>")
    for table, key in ((dotted, path), (flat, path.replace(".", "_"))):
        known = table.get(key)
        if known is not None and (known.parts, known.counter) != (spelling.parts, spelling.counter):
            if own is not None:
                own[key] = spelling
                continue
            raise LoraportError(
                f"{spelled} would name two modules",
                values=f"{', '.join(part.module for part in (*known.parts, *spelling.parts))}",
            )
        namings = spelling.namings | (known.namings if known else frozenset())
        table[key] = replace(spelling, namings=namings)


def _peeled(path: str) -> Iterator[tuple[str, str, bool, str | None]]:
    """The path with more and more known prefixes taken off: (prefixes, rest, whether it is flat, expert)."""
    rules = key_rules()
    prefix, rest, flat, expert = "", path, False, None
    yield prefix, rest, flat, expert
    for _ in range(MAX_PREFIXES):
        match = (rules.flattened if flat else rules.peel).match(rest)
        if match is None:
            return
        found = match.group()
        expert = rules.experts.get(found, expert)
        prefix, rest = prefix + found, rest[len(found) :]
        if found in rules.flat_prefixes:
            flat, rest = True, rest.replace(".", "_")
        yield prefix, rest, flat, expert
