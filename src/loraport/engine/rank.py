"""Of what rank the output is to be."""

import re
from dataclasses import dataclass
from typing import Literal

from loraport.errors import UsageError

LEAST_RANK = 32
"""The default output rank never falls below this: restoring the drift needs room of its own."""


@dataclass(frozen=True)
class RankRule:
    """How many rank-one terms each layer of the output may hold.

    Attributes:
        kind: `auto` (the input's rank, at least 32; the input's own for methods that keep it), `same`, `full`
            (min(m, n): nothing is lost), `fixed` or `energy`.
        value: number of terms for `fixed`; for `energy` the share of the squared Frobenius norm that is kept.
    """

    kind: Literal["auto", "same", "full", "fixed", "energy"]
    value: int | float = 0

    @classmethod
    def parse(cls, text: str) -> "RankRule":
        """Read `auto`, `same`, `full`, a whole number, or `energy=0.99`. Raises UsageError."""
        text = str(text).strip()
        if text in ("auto", "same", "full"):
            return cls(text)  # type: ignore[arg-type]  # it is one of the three
        if re.fullmatch(r"[0-9]{1,9}", text) and int(text) > 0:
            return cls("fixed", int(text))
        match = re.fullmatch(r"energy=(0?\.[0-9]{1,20}|1(\.0{0,20})?)", text)
        if match and float(match[1]) > 0:
            return cls("energy", float(match[1]))
        raise UsageError(
            "the rank is not understood",
            values=text,
            fix="give a whole number, same, full, or energy=0.99 (any share between 0 and 1)",
        )

    def for_input(self, rank: int, keeps: bool) -> "RankRule":
        """Settle `auto` and `same` for an input whose largest rank is `rank`; `keeps`: the method needs no more."""
        if self.kind == "same" or (self.kind == "auto" and keeps):
            return RankRule("fixed", rank)
        if self.kind == "auto":
            return RankRule("fixed", max(rank, LEAST_RANK))
        return self

    def most(self, full: int) -> int:
        """Terms that a settled rule lets a matrix of full rank `full` have at most."""
        return min(int(self.value), full) if self.kind == "fixed" else full

    def __str__(self) -> str:
        return {"fixed": f"{self.value:g}", "energy": f"energy={self.value:g}"}.get(self.kind, self.kind)
