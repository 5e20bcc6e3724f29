"""A regular expression as a small automaton that reads each character once (Thompson's construction)."""

import re
import warnings
from dataclasses import dataclass, field

MOST_STATES = 5_000  # of one pattern, its repetitions written out
DEEPEST = 50
REPETITION = re.compile(r"[*+?]|\{(\d{0,4})(?:(,)(\d{0,4}))?\}", re.ASCII)

Node = tuple  # ("one", pattern of one character) | ("start",) | ("end",) | ("all"|"any", nodes) | ("many", node, m, n)


class Refused(Exception):
    """Why a pattern cannot be evaluated."""


@dataclass
class Automaton:
    """A pattern as a program.

    Args:
        program: its steps: ("one", regex), ("fork", a, b), ("start",), ("end",), ("found",).
    """

    program: list[tuple]
    _steps: dict[tuple, frozenset[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> "Automaton":
        """Compile. Raises Refused."""
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
        raise Refused("it is too large")
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
            found = REPETITION.match(self.text, self.at)
            if found and found.group() not in ("{}", "{,}"):
                if atom[0] in ("start", "end"):
                    raise Refused("nothing to repeat")
                self.at = found.end()
                atom = ("many", atom, *_times(found))
                if self._peek() == "?":  # the shortest match instead of the longest: the same question
                    self.at += 1
                if self._peek() == "+" or ((again := REPETITION.match(self.text, self.at)) and again.group() != "{}"):
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
                raise Refused("a group of a kind that only a backtracking matcher can follow")
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
        raise Refused("a repetition from more to fewer")
    return least, most


def _one(text: str) -> Node:
    """A pattern of exactly one character, which Python's matcher decides at once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return ("one", re.compile(text))
    except (re.error, Warning) as error:
        raise Refused(str(error)) from None
