"""Is the target a distillation of the source, and is its drift more than rounding: before the work and after it."""

from collections.abc import Callable, Mapping, Sequence

from loraport.engine.experts.nearer import refuse_other_expert
from loraport.engine.job import LayerJob
from loraport.engine.layer import drift_share, share_of
from loraport.engine.layer_cache import norms_kept
from loraport.engine.plan import TransferPlan
from loraport.engine.reading import InputReader
from loraport.engine.results import LayerReport
from loraport.engine.rounding import MOSTLY, quantised, refuse_rounding, rounding_share
from loraport.errors import MismatchError
from loraport.store.store import Store
from loraport.wording import count

UNRELATED = 0.8
"""A drift of this share of the source's norm is no distillation. Two unrelated models differ by 1.4; the
most strongly distilled tiny model by 0.36."""


def check_kinship(
    plan: TransferPlan, sample: Sequence[LayerJob], reader: InputReader, store: Store, *, rounding: bool
) -> None:
    """Look at a few layers before the work, so that a wrong pair costs a second and not an hour.

    Args:
        plan: of the pair.
        sample: of `sample_for_kinship`.
        reader: of the plan's files; it holds the sample's weights afterwards, for the work on them, where they had to
            be read.
        store: asked first for what an earlier run found.
        rounding: whether a drift that is mostly rounding is a reason to refuse.

    Raises:
        MismatchError: source and target are not versions of one model, or the target is of the other expert.
        NumericalError: the drift is mostly rounding.
    """
    ratios, shares = {}, {}
    for job in sample:
        kept = norms_kept(job, reader, store)
        ratios[job.name], weight = drift_share(job, reader) if kept is None else share_of(*kept)
        shares[job.name] = rounding_share(job, ratios[job.name], weight)
    if ratios and not plan.recipe.force:
        refuse_other_expert(plan, sample, ratios, reader)
        _refuse_unrelated(ratios, plan)
    refuse_rounding(sample, ratios, shares, force=plan.recipe.force or not rounding)


def judge_pair(
    layers: Sequence[LayerReport], plan: TransferPlan, warn: Callable[[str], None], *, rounding: bool
) -> None:
    """What the finished layers say about the pair of models as a whole.

    Args:
        layers: all of the run.
        plan: that was carried out.
        warn: told what is odd, a sentence each.
        rounding: as for `check_kinship`.

    Raises:
        MismatchError, NumericalError: as `check_kinship`.
    """
    if all(layer.stats["exact_norm"] == 0.0 for layer in layers):
        warn("every update is zero, so the output does nothing; was the LoRA trained, and saved completely?")
    drifts = {layer.name: float(layer.stats["drift_rel"]) for layer in layers if "drift_rel" in layer.stats}
    if not drifts:
        return
    if not plan.recipe.force:
        _refuse_unrelated(drifts, plan)
    if all(value == 0.0 for value in drifts.values()):
        warn(
            "source and target are equal in every layer of the LoRA: there is nothing to transfer; did you name "
            "the same model twice?"
        )
        return
    strangers = [name for name, drift in drifts.items() if drift > UNRELATED]
    if strangers:  # the pair is related as a whole, so one weight of it is not what it should be
        warn(
            f"in {len(strangers)} of {count(len(drifts), 'layer')} the target has little to do with the source, "
            f"e.g. {strangers[0]} (a drift of {drifts[strangers[0]]:.3g} of its norm): a damaged weight, or one "
            "that lost its scale; leave such layers out with --drop, or reuse them unchanged with --layers"
        )
    shares = {layer.name: float(layer.stats.get("drift_rounding", 0.0)) for layer in layers}
    refuse_rounding(plan.jobs, drifts, shares, force=plan.recipe.force or not rounding)
    noise = [job for job in plan.jobs if shares[job.name] >= MOSTLY]
    if len(noise) > len(layers) // 2 or any(map(quantised, noise)):
        warn(
            f"in {len(noise)} of {count(len(layers), 'layer')} the drift is mostly the rounding of the stored weights; "
            "use checkpoints of a finer dtype if there are any"
        )


def unrelated(ratios: Mapping[str, float]) -> str | None:
    """By how much two models differ, where that is too much for versions of one; None where it is not.

    Args:
        ratios: layer -> norm of the drift over that of the source.
    """
    ordered = sorted(ratios.values())
    middle = ordered[len(ordered) // 2] if ordered else 0.0
    if not middle > UNRELATED:
        return None
    worst = max(ratios, key=lambda name: ratios[name])
    return (
        f"the weights differ by {middle:.2f} of their own norm in the median layer, {ratios[worst]:.2f} in "
        f"{worst}; a distilled model stays well below {UNRELATED}"
    )


def _refuse_unrelated(ratios: Mapping[str, float], plan: TransferPlan) -> None:
    found = unrelated(ratios)
    if found is not None and plan.target is not None:
        raise MismatchError(
            "source and target do not look like versions of one model",
            where=f"{plan.source.path} and {plan.target.path}",
            values=found,
            fix="check that one was made from the other, or both from a third, or continue with --force",
        )
