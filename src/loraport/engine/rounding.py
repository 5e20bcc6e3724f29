"""How much of a drift is the rounding of the stored weights, and when it is too much to go on with.

A method that reads the drift takes all of it for what the distillation did. The rounding of coarsely stored weights
is in it too, spread evenly over all directions, and cannot be told from the rest entry by entry; but its size is known.
"""

import math
from collections.abc import Mapping, Sequence

from loraport.containers.references import TensorRef, rounding_floor
from loraport.engine.job import LayerJob
from loraport.errors import NumericalError
from loraport.methods import registry
from loraport.wording import count, share

MOSTLY = 0.5
"""From this share of the squared norm on, the drift is called rounding."""
COARSE = 0.005
"""The floor of weights that are quantised; 16-bit numbers stay below it, 8-bit ones above."""


def rounding_share(job: LayerJob, drift: float, weight: float) -> float:
    """The share of a drift's squared norm that rounding explains, at most 1.

    Each of two weights is off by its floor over the square root of two. A drift of zero holds no rounding, and one that
    a distillation LoRA makes is exact whatever the source is stored as.

    Args:
        job: the layer.
        drift: norm of target minus source over that of the source.
        weight: norm of the source; numbers of 8 bits without a scale lose more where they are small.
    """
    if job.source is None or job.target is None or drift == 0.0:
        return 0.0
    rms = weight / math.sqrt(max(math.prod(job.shape), 1))
    noise = (rounding_floor(job.source, rms) ** 2 + rounding_floor(job.target, rms) ** 2) / 2.0
    return min(noise / drift**2, 1.0)


def refuse_rounding(
    jobs: Sequence[LayerJob], drifts: Mapping[str, float], shares: Mapping[str, float], *, force: bool
) -> None:
    """Refuse where methods read a drift that is mostly rounding, in most of the layers.

    Args:
        jobs: the layers; those of methods that read no drift are not asked.
        drifts: of each, relative to the source, by name.
        shares: of rounding in them (`rounding_share`), by name; none where there is less than one per cent.
        force: go on all the same.

    Raises:
        NumericalError: so it is, and weights are quantised.
    """
    reading = [job for job in jobs if reads_drift(job)]
    noisy = [job for job in reading if quantised(job) and shares.get(job.name, 0.0) >= MOSTLY]
    if force or 2 * len(noisy) <= len(reading):
        return
    explained, drift = sorted((shares[job.name], drifts[job.name]) for job in noisy)[len(noisy) // 2]
    first = noisy[0]
    assert first.source is not None
    assert first.target is not None
    raise NumericalError(
        f"the drift is mostly the rounding of quantised weights, in {len(noisy)} of {count(len(reading), 'layer')}",
        where=f"source {first.source.file} ({first.source.stored_as}), "
        f"target {first.target.file} ({first.target.stored_as})",
        values=f"in the median layer the weights differ by {share(drift)}, and rounding is {share(explained)} of that",
        fix="use bf16 copies of both models, reuse the LoRA as it is (--method direct, with a --strength), which "
        "needs no weights, or continue with --force",
    )


def reads_drift(job: LayerJob) -> bool:
    """Whether a layer's method reads the drift, so that rounding in it matters."""
    method, params = registry.resolve(job.method, job.params)
    return method.needs(params).drift


def quantised(job: LayerJob) -> bool:
    """Whether one of the two weights is stored in 8 bits or less."""
    weights: list[TensorRef] = [ref for ref in (job.source, job.target) if ref is not None]
    return any(rounding_floor(ref) > COARSE for ref in weights)
