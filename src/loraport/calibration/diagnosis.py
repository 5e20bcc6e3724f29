"""How much of the LoRA's change a target shows: ratio and direction, in finished clips and at each time step.

At a state x and time t, `e` is what the LoRA changes in the source's velocity, guided as the source is used, and `r`
what it changes in the target's. The share shown is `<r, e> / <e, e>`, the size ratio `|r| / |e|`, the direction
`<r, e> / |r||e|`. All three are means over samples, taken before dividing. A distilled model makes a clip in fewer
steps than its source, so single steps are for comparing before with after; finished clips can be held against 1.
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
        where: a time (`t = 0.75`), or what else is compared.
        share: along the source's change.
        ratio: of sizes.
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
class Effect:
    """What the target shows with one update on it.

    Attributes:
        clips: in finished clips, from noise to clip.
        steps: in the velocity at each time step; empty if not measured.
        whole: over all time steps; None if not measured.
    """

    clips: Shown
    steps: tuple[Shown, ...] = ()
    whole: Shown | None = None

    @classmethod
    def of(
        cls,
        clips: Shown,
        response: Float[Tensor, "t n ..."],
        wanted: Float[Tensor, "t n ..."],
        times: Sequence[float],
    ) -> "Effect":
        """From the changes in finished clips and at states of every time step, of no samples if not measured."""
        if response.shape[1] == 0:
            return cls(clips)
        steps = [Shown.of(f"t = {time:.3g}", r, e) for time, r, e in zip(times, response, wanted, strict=True)]
        return cls(clips, tuple(steps), Shown.of("all steps", response, wanted))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Diagnosis:
    """The answer to "does my LoRA work on this model", in numbers and in a sentence.

    Attributes:
        guidance: that the source is used with.
        before: with the LoRA as it is.
        after: with what was chosen.
    """

    guidance: float
    before: Effect
    after: Effect

    @property
    def sentence(self) -> str:
        """For people."""
        text = f"In finished clips the LoRA shows {_change(self.before.clips, self.after.clips)} of the change it "
        text += "makes in the source"
        if self.before.whole is None or self.after.whole is None:
            return text + "."
        steps = _change(self.before.whole, self.after.whole)
        return f"{text}; in single steps {steps} of the source's change under guidance {self.guidance:g}."

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sentence": self.sentence,
            "guidance": self.guidance,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def _change(before: Shown, after: Shown) -> str:
    text = f"{100 * before.share:.0f} %"
    return text if abs(after.share - before.share) < 0.005 else f"{text} (calibrated {100 * after.share:.0f} %)"
