"""The work of one layer by the kinds of work that a machine does at different speeds, given what is there already.

What the method says (`TransferMethod.cost`), the bases that are not in the cache, and the bytes to be read, hashed,
kept and fetched: as `worker` and `layer` go about it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from loraport.engine.job import LayerJob
from loraport.engine.job_cost import ChosenMethod, rank_bound
from loraport.engine.keys import ADDED, basis_key, basis_role, prepared_key, result_key
from loraport.engine.known_digests import KnownDigests
from loraport.engine.rates import Rates
from loraport.methods import cost as costs
from loraport.methods.cost import Cost
from loraport.store.index import entry_path
from loraport.store.writing import WRITERS


@dataclass(frozen=True)
class Have:
    """What is there already of a layer.

    Args:
        digests: of the two weights, so that they are not read to be hashed.
        result: the finished layer.
        bases: roles ("source", "target") whose basis is kept.
        prepared: what the method makes of the pair.
        stores: there is a cache, into which the finished layer goes,
        keeps: and the new bases and what the method makes of the pair, too.
        in_hand: a LoRA before has just had it all brought together, in the same job.
    """

    digests: bool = False
    result: bool = False
    bases: frozenset[str] = frozenset()
    prepared: bool = False
    stores: bool = False
    keeps: bool = False
    in_hand: bool = False


NOTHING = Have()


@dataclass(frozen=True)
class LayerKind:
    """All of a layer that decides how much work it is; a model has thousands of layers of some ten kinds.

    Args:
        method: its name.
        shape: (out, in) of the weight.
        rank_in: of the LoRA's update.
        rank_out: of the output at most.
        item: bytes of a number of the output.
        lora: bytes of the update, and of those that are added to the weights.
        source: bytes of the source's weight; None where the method does not need it.
        weights: bytes of all weights.
    """

    method: str
    shape: tuple[int, int]
    rank_in: int
    rank_out: int
    item: int
    lora: int
    source: int | None
    weights: int

    @classmethod
    def of(cls, job: LayerJob) -> "LayerKind":
        """That of a layer."""
        updates = [job.update, *job.target_updates.values(), *job.source_updates.values()]
        return cls(
            job.method,
            job.shape,
            job.update.rank,
            rank_bound(job),
            4 if job.dtype == "float32" else 2,
            sum(ref.nbytes for update in updates for ref in update.refs.values()),
            None if job.source is None else job.source.nbytes,
            weights_bytes(job),
        )


@dataclass(frozen=True)
class Work:
    """Of one layer, or of a step of it.

    Args:
        cost: computing.
        read: bytes of the input files, hashed while they are read.
        keep: bytes written into the cache.
        fetch: bytes read back from it and checked.
    """

    cost: Cost = Cost()  # noqa: RUF009 - frozen
    read: int = 0
    keep: int = 0
    fetch: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.cost + other.cost, self.read + other.read, self.keep + other.keep, self.fetch + other.fetch)


def _has(root: Path | None, kind: str, key: str) -> bool:
    return root is not None and entry_path(root, kind, key).is_file()


def look_up(job: LayerJob, asked: ChosenMethod, root: Path | None, remembered: KnownDigests, keeps: bool) -> Have:
    """What is there of a layer, as far as the digests of its weights are remembered.

    Args:
        job: the layer.
        asked: its method.
        root: the cache folder, if there is one.
        remembered: digests of earlier runs.
        keeps: whether what is decomposed is to be kept.
    """
    known = {role: remembered.known_digest(ref) for role, ref in job.refs.items()}
    digests = {role: text for role, text in known.items() if text is not None}
    weights = {role for role in ("source", "target") if role in known}
    if not weights <= digests.keys():
        return replace(NOTHING, stores=root is not None, keeps=keeps)
    told = all(role in digests for role in known if role.startswith(ADDED))
    prepared = prepared_key(asked.method, asked.params, job, digests) if told else None
    return Have(
        digests=True,
        result=len(digests) == len(known) and _has(root, "result", result_key(job, digests)),
        bases=frozenset(
            side
            for side in weights
            if basis_role(job, side)
            and (told or not job.added(side))
            and _has(root, "basis", basis_key(job, side, digests))
        ),
        prepared=prepared is not None and _has(root, "prepared", prepared),
        stores=root is not None,
        keeps=keeps,
    )


def after(job: LayerJob, asked: ChosenMethod, have: Have) -> Have:
    """What another LoRA finds once this layer is done and kept."""
    has_pair = job.source is not None and job.target is not None
    bases = {role for role in asked.bases if job.source is not None and basis_role(job, role)}
    return Have(
        digests=True,
        bases=have.bases | bases,
        prepared=has_pair and asked.method.prepared_key(asked.params) is not None,
        stores=True,
    )


def is_warm(job: LayerJob, asked: ChosenMethod, have: Have) -> bool:
    """Whether all is there that a method keeps; never for one that keeps nothing."""
    then = after(job, asked, have)
    return bool(then.bases or then.prepared) and have.bases >= then.bases and have.prepared >= then.prepared


def work_of(kind: LayerKind, asked: ChosenMethod, have: Have) -> Work:
    """`steps_of`, all together."""
    return sum(steps_of(kind, asked, have).values(), Work())


def steps_of(kind: LayerKind, asked: ChosenMethod, have: Have) -> dict[str, Work]:
    """What a layer takes by step, as `worker` and `layer` go about it; a step that is left out is not in it.

    Args:
        kind: of layer.
        asked: of its method.
        have: what is there already.
    """
    m, n = kind.shape
    found = {"LoRA": Work(read=kind.lora if have.result else 2 * kind.lora)}  # hashed, then read to be computed with
    result = kind.rank_out * (m + n) * kind.item
    if have.result:
        found["weights"] = Work(read=0 if have.digests else kind.weights)
        return found | {"fetch": Work(fetch=result)}
    keep = result if have.stores else 0
    if kind.source is None:
        return found | {"output": Work(costs.factors(m, n, kind.rank_out)), "keep": Work(keep=keep)}

    method, params, needs = asked.method, asked.params, asked.needs
    own = method.steps(kind.shape, max(kind.rank_in, kind.rank_out), params, have.prepared or have.in_hand)
    computing = {name: Work(cost) for name, cost in own.items()}
    if have.in_hand:
        return found | computing | {"keep": Work(keep=keep)}
    missing = asked.bases - have.bases
    wants_pair = not have.prepared or (needs.drift and method.reads_drift(kind.shape, params))
    reads = kind.weights if wants_pair or needs.target or not have.digests else 0
    if not reads and ("source" in missing or needs.source or not needs.basis):
        reads = kind.source
    found["weights"] = Work(read=reads)
    if wants_pair:
        found["difference of the weights"] = Work(costs.elementwise(m, n, 6))  # and two norms
    if missing:
        steps = costs.thin_basis_steps(m, n)
        found |= {name: Work(cost.times(len(missing))) for name, cost in steps.items()}
    basis = costs.basis_bytes(m, n)
    prepared = max(method.kept_bytes(kind.shape, params) - len(asked.bases) * basis, 0)
    lasting = len(missing) * basis + (0 if have.prepared else prepared)
    fetched = len(asked.bases & have.bases) * basis + (prepared if have.prepared else 0)
    found |= {"fetch": Work(fetch=fetched), **computing}
    return found | {"keep": Work(keep=keep + (lasting if have.keeps else 0))}


def weights_bytes(job: LayerJob) -> int:
    """Of the weights that a layer's method needs, as stored."""
    return sum(ref.nbytes for ref in (job.source, job.target) if ref is not None)


def seconds_of(work: Work, rates: Rates, beside: float = 0.0) -> float:
    """How long it takes.

    Args:
        work: of a layer.
        rates: of the device that computes.
        beside: threads of the host that read and write meanwhile; 0 where whoever computes does that too.
    """
    cost = work.cost
    computing = cost.products / rates.products + cost.decompositions / rates.decompositions
    computing += cost.columns * rates.column
    computing += cost.passes / rates.passes + costs.SLOWER * cost.factorisations / rates.products
    reading, writing = work.read / rates.read + work.fetch / rates.fetch, work.keep / rates.keep
    if beside:
        return max(computing, reading / beside, writing / min(beside, WRITERS))
    return computing + reading + writing
