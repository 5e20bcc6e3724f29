"""How far a candidate's clips are from those of source + LoRA. No labels and no data: the source is the critic.

`LatentDistance` compares clip with clip. It favours weak effects: where two models paint different clips of the same
noise, the clip between them is the nearest. `LikelihoodGap` asks instead how likely a clip is to the source. At noisy
versions of the clip, time by time, `J = E |v_s(x_t; +LoRA) - (ε - x)|²` is the error of source + LoRA, a bound on how
unlikely the clip is for it, and `d = E |v_s(x_t) - (ε - x)|² - J` is the log-likelihood ratio, up to a factor: how much
better the clip is explained with the LoRA than without, be it by a look, a content or a motion. With B the clips of
source + LoRA, A those of the source alone, and D those of a candidate,

    gap = mean over t of  max(0, (d_B - d_D) / (d_B - d_A)) + max(0, J_D / J_B - 1)

is the share of the likelihood ratio that is missing, plus the share by which the error exceeds that on B's own clips.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from loraport.sampling.attach import Update, attached
from loraport.sampling.denoiser import Conditions
from loraport.sampling.runner import ModelRunner

TIMES = (0.1, 0.25, 0.9)
"""Of the noisy versions of a clip, 0 being the clip: fine texture, edges, layout and motion."""
NOISE = 7_000_900_000
"""Seeds of their noise begin here."""


class Gap(ABC):
    """A measure: how a gap is made of what is known of each clip."""

    words: ClassVar[str]

    @abstractmethod
    def values(self, columns: Float[Tensor, "q n"], weights: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """The gap of a candidate over all samples, each weighted; one value a row of weights."""


@dataclass(frozen=True)
class LatentDistance(Gap):
    """Mean squared difference of finished latents; the one column is that of each clip."""

    words: ClassVar[str] = "mean squared difference of finished clips to those of source + LoRA"

    def values(self, columns: Float[Tensor, "q n"], weights: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """The mean."""
        return weights @ columns[0].double() / weights.sum(1)


@dataclass(frozen=True, eq=False)
class LikelihoodGap(Gap):
    """See the module. Columns: J at each time, then the same errors without the LoRA.

    Attributes:
        aim: the columns of B.
        gain: d_B - d_A at each time.
        sees: the times at which that is more than noise.
    """

    words: ClassVar[str] = "missing likelihood ratio of the LoRA, plus excess error, as the source sees the clips"

    aim: Float[Tensor, "q m"]
    gain: Float[Tensor, " t"]
    sees: Bool[Tensor, " t"]

    @classmethod
    def of(cls, aim: Float[Tensor, "q m"], alone: Float[Tensor, "q few"]) -> "LikelihoodGap | None":
        """From the source's errors on its own clips with the LoRA and without; None if it sees no difference."""
        few = alone.shape[1]
        difference = likelihood_ratio(aim[:, :few].double()) - likelihood_ratio(alone.double())
        gain, error = difference.mean(1), difference.std(1) / few**0.5
        sees = gain > 2 * error
        return cls(aim.double(), gain, sees) if bool(sees.any()) else None

    def values(self, columns: Float[Tensor, "q n"], weights: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """Missing ratio plus excess error, mean over the times at which the source sees the LoRA."""
        columns, half = columns.double(), len(columns) // 2

        def mean(rows: Float[Tensor, "t n"]) -> Float[Tensor, "r t"]:
            return weights @ rows.T / weights.sum(1, keepdim=True)

        missing = mean(likelihood_ratio(self.aim) - likelihood_ratio(columns)) / self.gain
        excess = mean(columns[:half]) / mean(self.aim[:half]) - 1
        return (missing.clamp_min(0) + excess.clamp_min(0))[:, self.sees].mean(1)


def likelihood_ratio(columns: Float[Tensor, "q n"]) -> Float[Tensor, "t n"]:
    """d at each time: how much smaller the error is with the LoRA."""
    half = len(columns) // 2
    return columns[half:] - columns[:half]


def denoising_errors(
    source: ModelRunner, lora: Update, clips: Float[Tensor, "n ..."], conditions: Conditions
) -> Float[Tensor, "q n"]:
    """The errors of the source at noisy versions of clips, a row a time, with the LoRA and then without it.

    The noise belongs to the place in the row of samples, so every candidate meets the same.

    Args:
        source: the model at work.
        lora: the LoRA on it.
        clips: finished latents, made from the samples in order.
        conditions: the prompts of the samples.
    """
    prompts = conditions.prompts[: len(clips)]

    def errors() -> list[Tensor]:
        rows = []
        for number, time in enumerate(TIMES):
            noise = torch.stack([_noise(clips.shape[1:], row, number) for row in range(len(clips))])
            noisy = (1 - time) * clips + time * noise
            made = source.map(lambda x, p, t=time: source.velocity(x, t, p), noisy, prompts)
            rows.append((made - (noise - clips)).double().flatten(1).square().mean(1))
        return rows

    with attached(source.denoiser, lora):
        with_lora = errors()
    return torch.stack([*with_lora, *errors()])


def _noise(shape: torch.Size, row: int, number: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(NOISE + row * len(TIMES) + number))
