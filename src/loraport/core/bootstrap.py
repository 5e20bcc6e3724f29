"""Numbers with their uncertainty: a bootstrap that is shared by everything that is compared.

What is drawn again is the unit that is independent of the others (a prompt with all of its seeds, a starting noise).
Everything that is compared on the same units shares the draws, so a difference of two estimates is a paired one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value on all units and on every bootstrap draw.

    Attributes:
        value: on all units.
        draws: on each draw.
    """

    value: float
    draws: Float[Tensor, " r"] = field(repr=False)

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
        """Ratio. An infinite draw stays infinite."""
        value = self.value / other.value if other.value != 0 else math.nan
        return Estimate(value, self.draws / other.draws)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Draws of units with replacement, the same way every time. Build it with `of`.

    Attributes:
        counts: how often unit i is in draw r.
    """

    counts: Float[Tensor, "r units"]

    @classmethod
    def of(cls, units: int, *, draws: int = 400, seed: int = 0) -> "Bootstrap":
        """Draw `units` of `units`, `draws` times."""
        picks = torch.randint(units, (draws, units), generator=Generator().manual_seed(seed))
        counts = torch.zeros(draws, units, dtype=torch.float64)
        return cls(counts.scatter_add_(1, picks, torch.ones(draws, units, dtype=torch.float64)))

    def estimate(self, statistic: Callable[[Float[Tensor, "rows units"]], Float[Tensor, " rows"]]) -> Estimate:
        """Of any statistic that takes how often each unit counts, a row a draw; the first row counts all once."""
        values = statistic(torch.cat([torch.ones_like(self.counts[:1]), self.counts])).double()
        return Estimate(values[0].item(), values[1:])

    def mean(self, values: Float[Tensor, "repeats units"]) -> Estimate:
        """Mean over all repeats and units."""
        by_unit = values.double().mean(0)
        return Estimate(by_unit.mean().item(), self.counts @ by_unit / len(by_unit))
