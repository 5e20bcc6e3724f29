"""Which expert of Wan2.2 a target was distilled from: it is nearer to that one than to the other.

The two experts of a model differ by more than a distillation moves either of them, so that a target which is nearer
to the other source shows that files were exchanged, on a few layers and before the work. How much nearer: where the
drift is `d` and the experts lie `x` apart, the wrong source is `sqrt(d² + x²)` away, so that `NEARER` notices an
exchange as soon as `x` is half of `d`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from loraport.containers.locate import expert_folders
from loraport.containers.names import Expert
from loraport.containers.references import common_dtype
from loraport.engine.job import LayerJob
from loraport.engine.layer import drift_share
from loraport.engine.plan import TransferPlan
from loraport.engine.reading import InputReader
from loraport.errors import LoraportError, MismatchError
from loraport.models.checkpoint import Checkpoint, open_checkpoint

NEARER = 0.9
"""The other expert counts as nearer where its distance is below this share of that of the named one."""

OTHER: dict[Expert, Expert] = {"high": "low", "low": "high"}


def distances(
    sample: Sequence[LayerJob],
    reader: InputReader,
    *,
    source: Checkpoint | None = None,
    target: Checkpoint | None = None,
) -> dict[str, float]:
    """The drift of some layers between other models than those of the plan, as a share of the source's norm.

    Args:
        sample: layers that name both weights.
        reader: of the input files. It holds the sample's own weights afterwards, and nothing else.
        source: where to take the source's weights from instead.
        target: where to take the target's weights from instead.

    Returns:
        Layer -> share; a layer that is not there in this size is left out.
    """
    found = {}
    for job in sample:
        one = job.source if source is None else source.tensors.get(f"{job.name}.weight")
        two = job.target if target is None else target.tensors.get(f"{job.name}.weight")
        if one is None or two is None or tuple(one.shape) != job.shape or tuple(two.shape) != job.shape:
            continue
        moved = replace(job, source=one, target=two, round_to=common_dtype(one, two))
        found[job.name], _ = drift_share(moved, reader)
        reader.drop({one, two} - {job.source, job.target})
    return found


def nearer(other: Mapping[str, float], named: Mapping[str, float]) -> bool:
    """Whether the other model is clearly nearer than the named one, in the middle of the layers that both have."""
    both = other.keys() & named.keys()
    return bool(both) and median(other[name] for name in both) < NEARER * median(named[name] for name in both)


def refuse_other_expert(
    plan: TransferPlan, sample: Sequence[LayerJob], ratios: Mapping[str, float], reader: InputReader
) -> None:
    """Where a side is one of two experts in a folder: is the other one nearer to the other side?

    Args:
        plan: of one expert.
        sample: a few of its layers.
        ratios: their drift as a share of the source's norm.
        reader: of the plan's files; it holds the sample's weights.

    Raises:
        MismatchError: it is.
    """
    for role, model, spec in (("source", plan.source, plan.recipe.source), ("target", plan.target, plan.recipe.target)):
        if model is None or spec is None:
            continue
        folders = expert_folders(spec)
        taken = next((expert for expert, folder in folders.items() if folder == model.path), None)
        if taken is None:
            continue
        try:
            other = open_checkpoint(folders[OTHER[taken]])
        except LoraportError:  # it is not part of this job
            continue
        crossed = {"source": other} if role == "source" else {"target": other}
        found = distances(sample, reader, **crossed)
        if nearer(found, ratios):
            raise exchanged(
                f"the {'target' if role == 'source' else 'source'} belongs to the other expert of the {role}",
                f"{plan.source.path} and {plan.target.path if plan.target else ''}",
                {f"with {model.path.name}": ratios, f"with {other.path.name}": found},
                f"use --expert {OTHER[taken]} for {other.path.name}, or --force to continue as is",
            )


def exchanged(what: str, where: str, found: Mapping[str, Mapping[str, float]], fix: str) -> MismatchError:
    """The refusal, with the figures: pairing in words -> drift of its layers."""
    told = ", ".join(f"{median(ratios.values()):.3f} {name}" for name, ratios in found.items() if ratios)
    return MismatchError(
        what, where=where, values=f"drift over the source's norm, in the median layer: {told}", fix=fix
    )
