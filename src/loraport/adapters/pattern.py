"""The patterns of a PEFT configuration, evaluated as PEFT does but in bounded time.

PEFT takes the first pattern for which `re.match(rf"(.*\\.)?({pattern})$", module)` succeeds. Patterns come out of a
file, and Python's matcher can need time exponential in their length. Here a pattern becomes a small automaton that
reads each character once (Thompson's construction). What an automaton cannot do, back references and looking
around, is refused by name, and so is what is no regular expression at all.
"""

import contextlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from loraport.adapters.scale import STATE_IT
from loraport.errors import UnsupportedError

MOST_STATES = 5_000  # of one pattern, its repetitions written out
MOST_STATES_IN_ALL = 50_000
MOST_PATTERNS = 10_000
DEEPEST = 50
# A pattern that stands for as many characters as it has: letters, points and escaped points, perhaps anchored.
_PLAIN = re.compile(r"\^?(?:[\w\-]|\\?\.)*", re.ASCII)
_REPETITION = re.compile(r"[*+?]|\{(\d{0,4})(?:(,)(\d{0,4}))?\}", re.ASCII)

Node = tuple  # ("one", pattern of one character) | ("start",) | ("end",) | ("all"|"any", nodes) | ("many", node, m, n)


class _Refused(Exception):
    """Why a pattern cannot be evaluated."""


@dataclass
class Patterns:
    """Patterns of module paths with a value each, in the order of the file.

    Args:
        values: pattern -> value.
        where: where they stand, for messages.
    """

    values: Mapping[str, float]
    where: str
    _compiled: dict[str, "_Automaton"] = field(default_factory=dict)
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
                automaton = _Automaton.of(rf"(.*\.)?({pattern})$")
            except _Refused as refused:
                raise self._refuse(pattern, str(refused)) from None
            self._states += len(automaton.program)
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


@dataclass(frozen=True)
class Search:
    """A user's regular expression, to be found anywhere in names, in bounded time where an automaton can follow it.

    What it cannot follow (looking around, references back) is left to Python's own matcher: a user may need it, and
    only together with nested repetitions can it take for ever.

    Args:
        pattern: a valid regular expression.
    """

    pattern: str

    def __call__(self, name: str) -> bool:
        """Whether the pattern is found in a name."""
        found = _searching(self.pattern)
        return found.match(name) if isinstance(found, _Automaton) else found.search(name) is not None


@lru_cache(maxsize=32)
def _searching(pattern: str) -> "_Automaton | re.Pattern[str]":
    if len(_REPETITION.findall(pattern)) > 1:  # a single one costs no more than the square of a name's length
        with contextlib.suppress(_Refused):
            return _Automaton.of(rf"[\s\S]*({pattern})")
    return re.compile(pattern)


@dataclass
class _Automaton:
    """A pattern as a program: ("one", regex), ("fork", a, b), ("start",), ("end",), ("found",)."""

    program: list[tuple]
    _steps: dict[tuple, frozenset[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> "_Automaton":
        """Compile. Raises _Refused."""
        program: list[tuple] = []
        _emit(_Parser(text).parse(), program)
        program.append(("found",))
        return cls(program)

    def match(self, text: str) -> bool:
        """Whether a beginning of the text matches, as `re.match`."""
        states = self._closure([0], first=True, last=not text)
        for position, char in enumerate(text):
            if any(self.program[state][0] == "found" for state in states):
                return True
            last = position == len(text) - 1
            step = (states, char, last)
            if step not in self._steps:
                after = [s + 1 for s in states if self.program[s][0] == "one" and self.program[s][1].match(char)]
                self._steps[step] = self._closure(after, first=False, last=last)
            states = self._steps[step]
        return any(self.program[state][0] == "found" for state in states)

    def _closure(self, states: list[int], *, first: bool, last: bool) -> frozenset[int]:
        """All states that are reached without reading a character."""
        reached: set[int] = set()
        todo = list(states)
        while todo:
            state = todo.pop()
            if state in reached:
                continue
            reached.add(state)
            kind, *to = self.program[state]
            if kind == "fork":
                todo += to
            elif (kind == "start" and first) or (kind == "end" and last):
                todo.append(state + 1)
        return frozenset(state for state in reached if self.program[state][0] in ("one", "found"))


def _emit(node: Node, program: list[tuple]) -> None:
    if len(program) > MOST_STATES:
        raise _Refused("it is too large")
    kind = node[0]
    if kind in ("one", "start", "end"):
        program.append(node)
    elif kind == "all":
        for part in node[1]:
            _emit(part, program)
    elif kind == "any":
        ends = []
        for choice in node[1][:-1]:
            fork = len(program)
            program.append(())
            _emit(choice, program)
            ends.append(len(program))
            program.append(())
            program[fork] = ("fork", fork + 1, len(program))
        _emit(node[1][-1], program)
        for end in ends:
            program[end] = ("fork", len(program))
    else:
        _, part, least, most = node
        for _ in range(least):
            before = len(program)
            _emit(part, program)
            if len(program) == before:
                return  # an empty group, however often
        if most is None:
            fork = len(program)
            program.append(())
            _emit(part, program)
            program.append(("fork", fork))
            program[fork] = ("fork", fork + 1, len(program))
            return
        forks = []
        for _ in range(most - least):
            forks.append(len(program))
            program.append(())
            _emit(part, program)
            if len(program) == forks[-1] + 1:
                break
        for fork in forks:
            program[fork] = ("fork", fork + 1, len(program))


@dataclass
class _Parser:
    """Reads the part of Python's syntax that an automaton can follow."""

    text: str
    at: int = 0
    depth: int = 0

    def parse(self) -> Node:
        """The whole text. Raises _Refused."""
        node = self._choices()
        if self.at < len(self.text):
            raise _Refused("unbalanced parenthesis")
        return node

    def _choices(self) -> Node:
        choices = [self._sequence()]
        while self._peek() == "|":
            self.at += 1
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else ("any", choices)

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            atom = self._atom()
            found = _REPETITION.match(self.text, self.at)
            if found and found.group() not in ("{}", "{,}"):
                if atom[0] in ("start", "end"):
                    raise _Refused("nothing to repeat")
                self.at = found.end()
                atom = ("many", atom, *_times(found))
                if self._peek() == "?":  # the shortest match instead of the longest: the same question
                    self.at += 1
                if self._peek() == "+" or ((again := _REPETITION.match(self.text, self.at)) and again.group() != "{}"):
                    raise _Refused("a repetition of a repetition")
            parts.append(atom)
        return ("all", parts)

    def _atom(self) -> Node:
        char = self.text[self.at]
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape()
        self.at += 1
        if char in "*+?":
            raise _Refused("nothing to repeat")
        return {"^": ("start",), "$": ("end",), ".": _one(".")}.get(char) or _one(re.escape(char))

    def _group(self) -> Node:
        self.at += 1
        if self._peek() == "?":
            if not self.text.startswith("?:", self.at):
                raise _Refused("a group of a kind that only a backtracking matcher can follow")
            self.at += 2
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Refused("its groups are nested too deeply")
        node = self._choices()
        self.depth -= 1
        if self._peek() != ")":
            raise _Refused("missing parenthesis")
        self.at += 1
        return node

    def _class(self) -> Node:
        end = self.at + 1
        end += self.text.startswith("^", end)
        end += self.text.startswith("]", end)  # first in a class it stands for itself
        while end < len(self.text) and self.text[end] != "]":
            end += 2 if self.text[end] == "\\" else 1
        text = self.text[self.at : end + 1]
        self.at = end + 1
        return _one(text)

    def _escape(self) -> Node:
        text = self.text[self.at : self.at + 2]
        self.at += 2
        if text in (r"\A", r"\Z"):
            return ("start",) if text == r"\A" else ("end",)
        if len(text) == 2 and (text[1] in "dDwWsS" or not text[1].isalnum()):
            return _one(text)
        raise _Refused(f"{text} is not understood")

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]


def _times(found: re.Match[str]) -> tuple[int, int | None]:
    simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if found.group() in simple:
        return simple[found.group()]
    least = int(found[1] or 0)
    most = least if found[2] is None else int(found[3]) if found[3] else None
    if most is not None and most < least:
        raise _Refused("a repetition from more to fewer")
    return least, most


def _one(text: str) -> Node:
    """A pattern of exactly one character, which Python's matcher decides at once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return ("one", re.compile(text))
    except (re.error, Warning) as error:
        raise _Refused(str(error)) from None
