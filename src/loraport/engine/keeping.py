"""Which layers' decompositions are kept for the next LoRA of the pair.

Kept they are where that pays: what a further LoRA would save, as far as one is to be expected, is more than what
writing costs now. Both follow from the rates of the machine. A device hides the writing behind its own work.
"""

from collections.abc import Callable, Iterable, Sequence

from loraport.engine.ahead import threads_beside
from loraport.engine.job import LayerJob
from loraport.engine.job_cost import ChosenMethod, cached_bytes
from loraport.engine.known_digests import KnownDigests
from loraport.engine.layer_work import NOTHING, Have, LayerKind, after, seconds_of, work_of
from loraport.engine.options import RunOptions
from loraport.engine.rates import Rates

SMALL = 2 * 10**9
"""Bytes that are kept without asking: seconds, whatever the machine."""
FIRST = 0.5
"""How likely another LoRA is for a pair of models that were not used here before; one for those that were."""


def worth_keeping(
    jobs: Sequence[LayerJob],
    options: RunOptions,
    digests: KnownDigests,
    rates: Callable[[], Rates],
    *,
    device: str,
    several: bool = False,
) -> list[LayerJob]:
    """The layers whose decompositions are to be kept, as far as the cache holds them.

    Args:
        jobs: one for each layer.
        options: whether there is a choice.
        digests: of earlier runs, which show whether the models were used before.
        rates: of the device; asked only where it matters.
        device: that computes.
        several: this job is about several LoRAs, so that more are likely.
    """
    if options.cache == "off":
        return []
    if options.cache not in (None, "auto") or sum(map(cached_bytes, jobs)) <= SMALL:
        return list(jobs)
    likely = 1.0 if several or _used_before(jobs, digests) else FIRST
    return _paying(jobs, rates(), likely, 0.0 if device == "cpu" else float(threads_beside()))


def _used_before(jobs: Sequence[LayerJob], digests: KnownDigests) -> bool:
    refs = [ref for job in jobs[:1] for ref in (job.source, job.target) if ref is not None]
    return all(map(digests.is_from_earlier, refs))


def _paying(jobs: Sequence[LayerJob], rates: Rates, likely: float, beside: float) -> list[LayerJob]:
    pays: dict[LayerKind, bool] = {}
    for job in jobs:
        kind = LayerKind.of(job)
        if kind not in pays:
            pays[kind] = _pays(job, kind, rates, likely, beside)
    return [job for job in jobs if pays[LayerKind.of(job)]]


def _pays(job: LayerJob, kind: LayerKind, rates: Rates, likely: float, beside: float) -> bool:
    asked = ChosenMethod.of(job)

    def seconds(have: Have) -> float:
        return seconds_of(work_of(kind, asked, have), rates, beside)

    now = seconds(Have(stores=True, keeps=True)) - seconds(Have(stores=True))
    later = seconds(Have(digests=True, stores=True)) - seconds(after(job, asked, NOTHING))
    return likely * later > now


def layers_to_keep(jobs: Iterable[LayerJob], limit: int) -> frozenset[str]:
    """The layers, from the first on, whose decompositions fit into `limit` bytes of cache.

    Keeping them all in a cache that is too small would be worse than keeping none: by the time a run ends it has
    thrown out what the next run asks for first.
    """
    kept, used = [], 0
    for job in jobs:
        used += cached_bytes(job)
        if used > limit:
            break
        kept.append(job.name)
    return frozenset(kept)
