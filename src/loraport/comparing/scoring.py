"""What the clips of each variant measure, with intervals over prompts and seeds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.bootstrap import Bootstrap


@dataclass(frozen=True)
class Score:
    """A mean over clips.

    Attributes:
        mean: over all prompts and seeds.
        low, high: 95 % interval; None where there is a single clip.
    """

    mean: float
    low: float | None = None
    high: float | None = None


def scores_of(found: Mapping[tuple[int, int], Mapping[str, float]], prompts: int, seeds: int) -> dict[str, Score]:
    """Means and intervals of one variant.

    Prompts are drawn again, each with all of its seeds; of a single prompt its seeds are.

    Args:
        found: (prompt, seed) -> key of the measure -> number.
        prompts, seeds: how many there are of each.
    """
    keys = list(dict.fromkeys(key for row in found.values() for key in row))
    made = {}
    for key in keys:
        table = torch.tensor([[found[p, s][key] for p in range(prompts)] for s in range(seeds)], dtype=torch.float64)
        made[key] = _score(table if prompts > 1 else table.T)
    return made


def _score(table: Float[Tensor, "repeats units"]) -> Score:
    units = table.shape[1]
    if units < 2:
        return Score(table.mean().item())
    estimate = Bootstrap.of(units).mean(table)
    return Score(estimate.value, *estimate.interval())
