"""Gain ratios and Frechet distances, with errors from the shared bootstrap.

The unit that is drawn again is the prompt, with all of its seeds: clips of one prompt are not independent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.bootstrap import Bootstrap, Estimate


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


def frechet_estimate(bootstrap: Bootstrap, features: Float[Tensor, "seeds p d"], reference: Reference) -> Estimate:
    """Frechet distance between Gaussian fits, in units of the spread (trace of covariance) of the real clips.

    It has a bias that falls with the number of clips: compare it only between equal numbers.
    """
    x = features.double()

    def distances(counts: Float[Tensor, "rows p"]) -> Float[Tensor, " rows"]:
        weights = counts[:, None, :].expand(-1, len(x), -1)
        return _frechet(x.flatten(0, 1), weights.flatten(1), reference)

    return bootstrap.estimate(distances)


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
