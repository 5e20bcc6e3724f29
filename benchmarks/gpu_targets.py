"""What was aimed at on a card, and whether a run of `gpu.py` met it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from catalogue import table
from gpu_session import Session
from gpu_speed import BLOCKS, FLOOR, ROOM


class Unmeasured(Exception):
    """A figure is not there; the text says which."""


@dataclass(frozen=True)
class Target:
    """One goal.

    Args:
        what: in words.
        goal: in words.
        figure: of the found ones; raises Unmeasured.
        met: whether a figure is good enough.
        unit: after the figure.
    """

    what: str
    goal: str
    figure: Callable[["Figures"], float]
    met: Callable[[float], bool]
    unit: str = ""


class Figures:
    """Those of a session by name of the step, and the side of the eigenproblems of all 14B layers."""

    def __init__(self, figures: Mapping[str, Any], side: int):
        self._figures, self._side = figures, side

    def of(self, step: str, *inner: str) -> float:
        """A number. Raises Unmeasured."""
        found = self._figures.get(step, {}).get("found")
        for name in inner:
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, int | float):
            raise Unmeasured(step)
        return float(found)

    def block(self, step: str) -> float:
        """Seconds a block of a run over all of them. Raises Unmeasured."""
        return self.of(step, "whole") / BLOCKS

    def reading(self, step: str) -> float:
        """Seconds of reading a block of both files, by as many threads as pay. Raises Unmeasured."""
        both = min(self.of("reading both files once", threads) for threads in ("1", "4", "8"))
        return both / self.of(step, "blocks")

    def published_block(self) -> float:
        """Seconds of the layers of a block, one by one, by the published procedure. Raises Unmeasured."""
        layers = {"self_attn.q": 8, "ffn.0": 1, "ffn.2": 1}
        return sum(count * self.of(f"published, 14B {name}", "theirs") for name, count in layers.items())

    def eigenproblems(self) -> float:
        """Seconds of the eigenproblems of a block. Raises Unmeasured."""
        return 10 * self.of(f"{FLOOR}, {self._side}", "seconds")


TARGETS = (
    Target(
        "first CASA LoRA over its eigenproblems",
        "at most 1.3",
        lambda f: f.block("casa first, 14B") / f.eigenproblems(),
        lambda x: x <= 1.3,
    ),
    Target(
        f"further CASA LoRA, {BLOCKS} blocks of 14B",
        "at most 40 s",
        lambda f: BLOCKS * f.block("casa further, 14B"),
        lambda x: x <= 40,
        " s",
    ),
    *(
        Target(
            f"{method} over reading both files once",
            "at most 1.3",
            lambda f, m=method: f.block(f"{m}, 14B") / f.reading(f"{m}, 14B"),  # type: ignore[misc]
            lambda x: x <= 1.3,
        )
        for method in ("direct", "matched-gain")
    ),
    Target(
        "published procedure over ours, first LoRA",
        "at least 10",
        lambda f: f.published_block() / f.block("casa first, kept"),  # both keep what the next LoRA needs
        lambda x: x >= 10,
    ),
    Target(
        f"peak memory with --max-memory {ROOM}",
        "under 6 GB",
        lambda f: f.of(f"casa first, at most {ROOM}", "peak") / 1e9,
        lambda x: x < 6,
        " GB",
    ),
    *(
        Target(
            f"memory of {name} over the formula",
            "at most 1.1",
            lambda f, n=name: f.of(f"memory of {n}", "share"),  # type: ignore[misc]
            lambda x: x <= 1.1,
        )
        for name in ("self_attn.q", "ffn.0")
    ),
    Target("share of the time in which the card is busy", "at least 75 %", lambda f: 100 * f.of("busy, first", "share"),
           lambda x: x >= 75, " %"),
)  # fmt: skip


def verdict(session: Session) -> str:
    """The targets as a table: met, missed, or not measured."""
    figures, rows = Figures(session.figures, session.sides[-1]), [["target", "goal", "found", ""]]
    for target in TARGETS:
        try:
            found = target.figure(figures)
        except Unmeasured as error:
            rows.append([target.what, target.goal, "", f"unmeasured ({error})"])
            continue
        told = "of tiny models, means nothing" if session.tiny else "met" if target.met(found) else "MISSED"
        if not session.cuda and not session.tiny:
            told += ", on a CPU"
        rows.append([target.what, target.goal, f"{found:.3g}{target.unit}", told])
    return table(rows)
