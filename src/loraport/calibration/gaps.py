"""How far a candidate's clips are from those of source + LoRA. No labels and no data: the source is the critic.

`Latents` compares clip with clip. It favours weak effects: where two models paint different clips of the same noise,
the clip between them is the nearest. `Reading` asks instead what a clip looks like to the source. At noisy versions of
the clip, time by time, `J = E |v_s(x_t; +LoRA) - (ε - x)|²` is the error of source + LoRA, a bound on how unlikely the
clip is for it, and `d = E |v_s(x_t) - (ε - x)|² - J` is how much better the clip is explained with the LoRA than
without: the evidence for what the LoRA teaches, be it a look, a content or a motion. With B the clips of source + LoRA
and A those of the source alone,

    gap = mean over t of  max(0, (d_B - d_D) / (d_B - d_A)) + max(0, J_D / J_B - 1)

is the share of the LoRA's evidence that is missing, plus the share by which the error exceeds that on B's own clips.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from loraport.calibration.attach import Attached
from loraport.sampling.rollout import Conditions, Stage

MEASURES = ("reading", "latents")
TIMES = (0.1, 0.25, 0.9)
"""Of the noisy versions of a clip, 0 being the clip: fine texture, edges, layout and motion."""
NOISE = 7_000_900_000
"""Seeds of their noise begin here."""


class Gap(ABC):
    """A measure: what it keeps of each clip, and how the gap is made of it."""

    words: ClassVar[str]

    @abstractmethod
    def values(self, columns: Float[Tensor, "q n"], weights: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """The gap of a candidate over the first n held-out noises, each weighted; one value a row of weights."""


@dataclass(frozen=True)
class Latents(Gap):
    """Mean squared difference of finished latents; the one column is that of each clip."""

    words: ClassVar[str] = "mean squared difference of finished clips to those of source + LoRA"

    def values(self, columns: Float[Tensor, "q n"], weights: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """The mean."""
        return weights @ columns[0] / weights.sum(1)


@dataclass(frozen=True, eq=False)
class Reading(Gap):
    """See the module. Columns: J at each time, then the same errors without the LoRA.

    Attributes:
        aim: the columns of B. gain: d_B - d_A at each time. sees: the times at which that is more than noise.
    """

    words: ClassVar[str] = "missing evidence of the LoRA, plus excess error, as the source reads the clips"

    aim: Float[Tensor, "q m"]
    gain: Float[Tensor, " t"]
    sees: Bool[Tensor, " t"]

    @classmethod
    def of(cls, aim: Float[Tensor, "q m"], alone: Float[Tensor, "q few"]) -> "Reading | None":
        """From what the source reads in its own clips with the LoRA and without; None if it sees no difference."""
        few = alone.shape[1]
        difference = evidence(aim[:, :few].double()) - evidence(alone.double())
        gain, error = difference.mean(1), difference.std(1) / few**0.5
        sees = gain > 2 * error
        return cls(aim.double(), gain, sees) if bool(sees.any()) else None

    def values(self, columns: Float[Tensor, "q n"], weights: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """Missing evidence plus excess error, mean over the times at which the source sees the LoRA."""
        aim, half = self.aim[:, : columns.shape[1]], len(columns) // 2
        mean = lambda values: weights @ values.T / weights.sum(1, keepdim=True)  # noqa: E731
        missing = mean(evidence(aim) - evidence(columns)) / self.gain
        excess = mean(columns[:half]) / mean(aim[:half]) - 1
        return (missing.clamp_min(0) + excess.clamp_min(0))[:, self.sees].mean(1)


def evidence(columns: Float[Tensor, "q n"]) -> Float[Tensor, "t n"]:
    """d at each time: how much smaller the error is with the LoRA."""
    half = len(columns) // 2
    return columns[half:] - columns[:half]


def read(
    stage: Stage,
    attached: Attached,
    coefficients: Float[Tensor, " k"],
    clips: Float[Tensor, "n ..."],
    rows: slice,
    conditions: Conditions,
) -> Float[Tensor, "q n"]:
    """The errors of the source at noisy versions of clips, a row a time, with the LoRA and then without it.

    The noise belongs to the held-out noise that the clip was made from, so every candidate meets the same.

    Args:
        stage: the source at work. attached, coefficients: the LoRA on it.
        clips: finished latents. rows: which held-out noises they were made from. conditions: all held-out prompts.
    """
    prompts = conditions.prompts[rows]
    columns = []
    for on in (True, False):
        attached.put_on(coefficients) if on else attached.take_off()
        for number, time in enumerate(TIMES):
            noise = torch.stack([_noise(clips.shape[1:], row, number) for row in range(rows.start, rows.stop)])
            noisy = (1 - time) * clips + time * noise
            made = stage.map(lambda x, p, t=time: stage.velocity(x, t, p), noisy, prompts)
            columns.append((made - (noise - clips)).double().flatten(1).square().mean(1))
    attached.take_off()
    return torch.stack(columns)


def _noise(shape: torch.Size, row: int, number: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(NOISE + row * len(TIMES) + number))
