"""The patterns of a PEFT configuration, evaluated as Python does but in bounded time; and what a user wants left out.

PEFT takes the first pattern for which `re.match(rf"(.*\\.)?({pattern})$", module)` succeeds. Patterns come out of a
file, and Python's matcher can need time exponential in their length. What an automaton cannot do, back references and
looking around, is refused by name, and so is what is no regular expression at all.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loraport.adapters.automaton import Automaton, Refused
from loraport.adapters.scale import STATE_IT
from loraport.errors import UnsupportedError, UsageError

MOST_STATES_IN_ALL = 50_000
MOST_PATTERNS = 10_000
# A pattern that stands for as many characters as it has: letters, points and escaped points, perhaps anchored.
_PLAIN = re.compile(r"\^?(?:[\w\-]|\\?\.)*", re.ASCII)


@dataclass
class Patterns:
    """Patterns of module paths with a value each, in the order of the file.

    Args:
        values: pattern -> value.
        where: where they stand, for messages.
    """

    values: Mapping[str, float]
    where: str
    _compiled: dict[str, Automaton] = field(default_factory=dict)
    _states: int = 0

    def find(self, modules: Iterable[str]) -> float | None:
        """The value of the first pattern that matches a module, under any of its spellings; None if none does.

        Raises:
            UnsupportedError: a pattern that is no regular expression, or one that cannot be evaluated in bounded time.
        """
        modules = list(modules)
        if len(self.values) > MOST_PATTERNS:
            raise self._refuse(f"{len(self.values):,} patterns", f"at most {MOST_PATTERNS:,} are read")
        for pattern, value in self.values.items():
            if any(self._matches(pattern, module) for module in modules):
                return value
        return None

    def _matches(self, pattern: str, module: str) -> bool:
        if _PLAIN.fullmatch(pattern):
            return _plain_match(pattern, module)
        automaton = self._compiled.get(pattern)
        if automaton is None:
            try:
                automaton = Automaton.of(rf"(.*\.)?({pattern})$")
            except Refused as refused:
                raise self._refuse(pattern, str(refused)) from None
            self._states += len(automaton.states)
            if self._states > MOST_STATES_IN_ALL:
                raise self._refuse(pattern, "the patterns together are too large to evaluate")
            self._compiled[pattern] = automaton
        return automaton.match(module)

    def _refuse(self, pattern: str, why: str) -> UnsupportedError:
        return UnsupportedError(
            "a pattern of the LoRA's configuration cannot be evaluated",
            where=self.where,
            values=f"{pattern[:80]!r}: {why}",
            fix=STATE_IT,
        )


def _plain_match(pattern: str, module: str) -> bool:
    """A pattern without repetition or choice, character by character from the end. A point stands for any character."""
    anchored = pattern.startswith("^")
    wanted = re.findall(r"\\\.|.", pattern.removeprefix("^"))
    start = len(module) - len(wanted)
    if start < 0 or (start > 0 and (anchored or module[start - 1] != ".")):
        return False
    return all(want == "." or want[-1] == char for want, char in zip(wanted, module[start:], strict=True))


def dropping(pattern: str) -> re.Pattern[str]:
    """What the user wants left out. Raises UsageError where the pattern is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError("drop is not a regular expression", values=f"{pattern}: {error}") from error


def nothing_dropped(pattern: str, where: str, name: str) -> UsageError:
    """The error for a pattern that is found in nothing, after which everything would be carried as if unasked.

    Args:
        pattern: what was to be left out.
        where: the file.
        name: one that is there.
    """
    return UsageError(
        "nothing matches --drop",
        where=where,
        values=f"{pattern!r}; names are like {name}",
        fix="give a regular expression that matches a layer's name or a key of the file, or leave --drop out",
    )
