"""Numbers with their uncertainty: a bootstrap over prompts that is shared by everything that is compared.

The unit that is drawn again is the prompt, with all of its seeds: clips of one prompt are not independent. All
methods see the same prompts and the same noise, so they share the draws, and a difference of two estimates is a
paired one.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value on all clips (`value`) and on every bootstrap draw (`draws`)."""

    value: float
    draws: Float[Tensor, " r"]

    @property
    def error(self) -> float:
        """Standard error: the spread of the draws."""
        return self.draws.std().item()

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval, moved so that its middle draw is the value.

        The move is nothing for means. A Frechet distance grows when clips are drawn twice, and the plain percentiles
        would lie beside the value.
        """
        tails = torch.tensor([(1 - level) / 2, 0.5, (1 + level) / 2], dtype=self.draws.dtype)
        low, middle, high = torch.quantile(self.draws, tails).tolist()
        return self.value + low - middle, self.value + high - middle

    def __sub__(self, other: "Estimate") -> "Estimate":
        """Paired difference, for estimates of one `Bootstrap`."""
        return Estimate(self.value - other.value, self.draws - other.draws)

    def over(self, other: "Estimate") -> "Estimate":
        """Ratio. An infinite draw stays infinite; see `gain_ratio` for when not to ask."""
        value = self.value / other.value if other.value != 0 else math.nan
        return Estimate(value, self.draws / other.draws)


def gain_ratio(A: Estimate, B: Estimate, C: Estimate, D: Estimate) -> Estimate | None:
    """Signed gain ratio FGR = (D - C) / (B - A): 1 is the full gain that the LoRA has on the source, 0 none.

    None if the gain on the source, B - A, is within two standard errors of nothing.
    """
    gain = B - A
    return None if abs(gain.value) <= 2 * gain.error else (D - C).over(gain)


@dataclass(frozen=True, eq=False)
class Reference:
    """A Gaussian fit to features of real clips: mean and covariance."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "Reference":
        """Fit in float64."""
        features = features.double()
        return cls(features.mean(0), features.T.cov())


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """`counts[r, i]`: how often prompt i is in draw r. Build it with `of`."""

    counts: Float[Tensor, "r p"]

    @classmethod
    def of(cls, prompts: int, *, draws: int = 400, seed: int = 0) -> "Bootstrap":
        """Draw prompts with replacement, the same way every time."""
        picks = torch.randint(prompts, (draws, prompts), generator=Generator().manual_seed(seed))
        counts = torch.zeros(draws, prompts, dtype=torch.float64)
        return cls(counts.scatter_add_(1, picks, torch.ones(draws, prompts, dtype=torch.float64)))

    def mean(self, values: Float[Tensor, "seeds p"]) -> Estimate:
        """Mean over all clips."""
        by_prompt = values.double().mean(0)
        return Estimate(by_prompt.mean().item(), self.counts @ by_prompt / len(by_prompt))

    def frechet(self, features: Float[Tensor, "seeds p d"], reference: Reference) -> Estimate:
        """Frechet distance between Gaussian fits, in units of the spread (trace of covariance) of the real clips.

        It has a bias that falls with the number of clips: compare it only between equal numbers.
        """
        x = features.double()
        weights = torch.cat([torch.ones_like(self.counts[:1]), self.counts])[:, None, :].expand(-1, len(x), -1)
        distances = _frechet(x.flatten(0, 1), weights.flatten(1), reference)
        return Estimate(distances[0].item(), distances[1:])


def frechet(features: Float[Tensor, "n d"], reference: Reference) -> float:
    """`|m - m'|² + tr(C + C' - 2 (C C')^(1/2))` over `tr C'`, for the features of sampled clips against real ones."""
    weights = torch.ones(1, len(features), dtype=torch.float64)
    return _frechet(features.double(), weights, reference).item()


def _frechet(x: Float[Tensor, "n d"], weights: Float[Tensor, "r n"], reference: Reference) -> Float[Tensor, " r"]:
    """One distance a row of weights (how often each clip counts)."""
    total = weights.sum(1)
    values, vectors = torch.linalg.eigh(reference.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    x = x - reference.mean
    y = x @ root  # tr (C C')^(1/2) = tr (R C R)^(1/2) with R = C'^(1/2), and R C R is the covariance of x R
    mean, middle = (weights @ part / total[:, None] for part in (x, y))
    spread = (weights @ x.square().sum(1) - total * mean.square().sum(1)) / (total - 1)
    second = (weights @ (y[:, :, None] * y[:, None, :]).flatten(1)).unflatten(1, reference.covariance.shape)
    inner = (second - total[:, None, None] * middle[:, :, None] * middle[:, None, :]) / (total - 1)[:, None, None]
    cross = torch.linalg.eigvalsh(inner).clamp_min(0).sqrt().sum(1)
    trace = reference.covariance.trace()
    return (mean.square().sum(1) + spread - 2 * cross + trace) / trace
