"""How much of the LoRA's change a target shows: ratio and direction, per time step and per group of layers.

At a state x and time t, `e` is what the LoRA changes in the source's velocity (under guidance w) and `r` what it
changes in the target's. The share shown is `<r, e> / <e, e>`, the size ratio `|r| / |e|`, the direction
`<r, e> / |r||e|`. All three are means over probes, taken before dividing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Shown:
    """What the target shows of the source's change.

    Attributes:
        where: a time (`t = 0.75`) or a group of layers. share: along the source's change. ratio: of sizes.
        cosine: of directions.
    """

    where: str
    share: float
    ratio: float
    cosine: float

    @classmethod
    def of(cls, where: str, response: Float[Tensor, "..."], wanted: Float[Tensor, "..."]) -> "Shown":
        """From the two changes themselves."""
        r, e = response.double().flatten(), wanted.double().flatten()
        re, rr, ee = float(r @ e), float(r @ r), float(e @ e)
        if ee == 0:
            return cls(where, 0.0, 0.0, 0.0)
        return cls(where, re / ee, (rr / ee) ** 0.5, re / (rr * ee) ** 0.5 if rr > 0 else 0.0)


@dataclass(frozen=True)
class Table:
    """One row per time step or group, before (the LoRA as it is) and after (the result)."""

    before: tuple[Shown, ...]
    after: tuple[Shown, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, one row a place."""
        rows = []
        for old, new in zip(self.before, self.after, strict=True):
            old_values, new_values = asdict(old), asdict(new)
            del old_values["where"], new_values["where"]
            rows.append({"where": old.where, "before": old_values, "after": new_values})
        return rows


@dataclass(frozen=True)
class Diagnosis:
    """The answer to "does my LoRA work on this model", in numbers and in a sentence.

    Attributes:
        guidance: w, of the source's change that is compared with.
        whole: over all time steps. steps: one row a time step. groups: one row a group; empty if not measured.
        clips: the same for the finished clips of held-out noise: what the LoRA changes from noise to clip.
    """

    guidance: float
    whole: Table
    steps: Table
    groups: Table
    clips: Table

    @property
    def sentence(self) -> str:
        """For people."""
        before, after = self.whole.before[0], self.whole.after[0]
        text = (
            f"On this target the LoRA shows {_percent(before.share)} of the change that it makes in the source "
            f"(guidance {self.guidance:g})"
        )
        if abs(after.share - before.share) >= 0.005:
            text += f", after calibration {_percent(after.share)}"
        old, new = self.clips.before[0], self.clips.after[0]
        text += f"; in finished clips {_percent(old.share)}"
        if abs(new.share - old.share) >= 0.005:
            text += f", after calibration {_percent(new.share)}"
        return text + "."

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sentence": self.sentence,
            "guidance": self.guidance,
            "whole": self.whole.to_json(),
            "steps": self.steps.to_json(),
            "groups": self.groups.to_json(),
            "clips": self.clips.to_json(),
        }


def by_step(
    response: Float[Tensor, "t n ..."], wanted: Float[Tensor, "t n ..."], times: Sequence[float]
) -> tuple[tuple[Shown, ...], Shown]:
    """One row a time step, and all of them together."""
    rows = [Shown.of(f"t = {time:.3g}", r, e) for time, r, e in zip(times, response, wanted, strict=True)]
    return tuple(rows), Shown.of("all steps", response, wanted)


def under_guidance(responses: Float[Tensor, "two ..."], guidance: float) -> Float[Tensor, "..."]:
    """e_w = empty + w (prompted - empty)."""
    prompted, empty = responses
    return empty + guidance * (prompted - empty)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
