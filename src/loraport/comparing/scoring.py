"""What the clips of each variant measure, with intervals over prompts and seeds."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.comparing.report import ClipMean
from loraport.core.bootstrap import Bootstrap


def scores_of(found: Mapping[tuple[int, int], Mapping[str, float]], prompts: int, seeds: int) -> dict[str, ClipMean]:
    """Means and intervals of one variant, over the clips that have the number.

    Prompts are drawn again, each with all of its seeds; of a single prompt its seeds are.

    Args:
        found: (prompt, seed) -> key of the measure -> number.
        prompts, seeds: how many there are of each.
    """
    keys = list(dict.fromkeys(key for row in found.values() for key in row))
    made = {}
    for key in keys:
        by_prompt = [[found[p, s][key] for s in range(seeds) if key in found[p, s]] for p in range(prompts)]
        there = [row for row in by_prompt if row]
        units = there if prompts > 1 else [[value] for value in there[0]]
        means = torch.tensor([[sum(unit) / len(unit) for unit in units]], dtype=torch.float64)
        made[key] = _score(means, sum(map(len, there)))
    return made


def _score(means: Float[Tensor, "1 units"], clips: int) -> ClipMean:
    units = means.shape[1]
    if units < 2:
        return ClipMean(means.item(), clips=clips)
    estimate = Bootstrap.of(units).mean(means)
    return ClipMean(estimate.value, *estimate.interval(), clips=clips)
