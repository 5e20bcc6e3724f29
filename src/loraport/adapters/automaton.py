"""A regular expression as a small automaton that reads each character once (Thompson's construction)."""

import re
import warnings
from dataclasses import dataclass, field

MOST_STATES = 5_000  # of one pattern, its repetitions written out
DEEPEST = 50
_REPETITION = re.compile(r"[*+?]|\{(\d{0,4})(?:(,)(\d{0,4}))?\}", re.ASCII)

Node = tuple  # ("one", pattern of one character) | ("start",) | ("end",) | ("all"|"any", nodes) | ("many", node, m, n)


class Refused(Exception):
    """Why a pattern cannot be evaluated."""


@dataclass(eq=False)
class Automaton:
    """A pattern as states.

    Args:
        states: ("found",), ("one", pattern of one character, then), ("start", then), ("end", then) or ("fork", thens);
            `then` is the number of the next state. The first is ("found",).
        first: where it begins.
    """

    states: list[tuple] = field(default_factory=lambda: [("found",)])
    first: int = 0
    _steps: dict[tuple, frozenset[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> "Automaton":
        """Compile. Raises Refused."""
        automaton = cls()
        automaton.first = automaton._build(_Parser(text).parse(), then=0)
        return automaton

    def _build(self, node: Node, then: int) -> int:
        """The number of the state where a node begins that is followed by another."""
        kind, *parts = node
        if kind == "all":
            for part in reversed(parts[0]):
                then = self._build(part, then)
            return then
        if kind == "any":
            return self._add("fork", *(self._build(choice, then) for choice in parts[0]))
        if kind != "many":
            return self._add(*node, then)
        part, least, most = parts
        if most is None:
            again = self._add()
            self.states[again] = ("fork", self._build(part, again), then)
            most, then = least, again
        after = then
        for time in range(most):
            start = self._build(part, then)
            if start == then:
                break  # an empty group, however often
            then = start if time >= most - least else self._add("fork", start, after)
        return then

    def _add(self, *state: object) -> int:
        if len(self.states) > MOST_STATES:
            raise Refused("it is too large")
        self.states.append(state)
        return len(self.states) - 1

    def match(self, text: str) -> bool:
        """Whether a beginning of the text matches, as `re.match`."""
        reached = self._closure([self.first], first=True, last=not text)
        for position, char in enumerate(text):
            if 0 in reached:
                return True
            last = position == len(text) - 1
            step = (reached, char, last)
            if step not in self._steps:
                ones = (self.states[number] for number in reached)
                after = [then for _, one, then in ones if one.match(char)]
                self._steps[step] = self._closure(after, first=False, last=last)
            reached = self._steps[step]
        return 0 in reached

    def _closure(self, numbers: list[int], *, first: bool, last: bool) -> frozenset[int]:
        """Of the states that are reached without reading a character those that read one, and the one that is found."""
        reached: set[int] = set()
        todo = list(numbers)
        while todo:
            number = todo.pop()
            if number in reached:
                continue
            reached.add(number)
            kind, *then = self.states[number]
            if kind == "fork" or (kind == "start" and first) or (kind == "end" and last):
                todo += then
        return frozenset(number for number in reached if self.states[number][0] in ("one", "found"))


@dataclass
class _Parser:
    """Reads the part of Python's syntax that an automaton can follow."""

    text: str
    at: int = 0
    depth: int = 0

    def parse(self) -> Node:
        """The whole text. Raises Refused."""
        node = self._choices()
        if self.at < len(self.text):
            raise Refused("unbalanced parenthesis")
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
                    raise Refused("nothing to repeat")
                self.at = found.end()
                atom = ("many", atom, *_times(found))
                if self._peek() == "?":  # the shortest match instead of the longest: the same question
                    self.at += 1
                if self._peek() == "+" or ((again := _REPETITION.match(self.text, self.at)) and again.group() != "{}"):
                    raise Refused("a repetition of a repetition")
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
            raise Refused("nothing to repeat")
        return {"^": ("start",), "$": ("end",), ".": _one(".")}.get(char) or _one(re.escape(char))

    def _group(self) -> Node:
        self.at += 1
        if self._peek() == "?":
            if not self.text.startswith("?:", self.at):
                raise Refused("a kind of group that only a backtracking matcher can handle")
            self.at += 2
        self.depth += 1
        if self.depth > DEEPEST:
            raise Refused("its groups are nested too deeply")
        node = self._choices()
        self.depth -= 1
        if self._peek() != ")":
            raise Refused("missing parenthesis")
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
        raise Refused(f"{text} is not understood")

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]


def _times(found: re.Match[str]) -> tuple[int, int | None]:
    simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if found.group() in simple:
        return simple[found.group()]
    least = int(found[1] or 0)
    most = least if found[2] is None else int(found[3]) if found[3] else None
    if most is not None and most < least:
        raise Refused("a repetition whose maximum is below its minimum")
    return least, most


def _one(text: str) -> Node:
    """A pattern of exactly one character, which Python's matcher decides at once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return ("one", re.compile(text))
    except (re.error, Warning) as error:
        raise Refused(str(error)) from None
