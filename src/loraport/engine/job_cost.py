"""What the work on one layer takes, by headers alone: operations, memory, and room in the cache."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loraport.adapters.update import LayerUpdate
from loraport.engine.job import SMALL_CHANGE, LayerJob
from loraport.engine.rank import RankRule
from loraport.methods import cost as costs
from loraport.methods import registry
from loraport.methods.base import Needs, Params, TransferMethod


def cached_bytes(job: LayerJob) -> int:
    """What the method keeps of such a layer for the next LoRA."""
    if job.source is None:
        return 0
    method, params = registry.resolve(job.method, job.params)
    return method.kept_bytes(job.shape, params)


@dataclass(frozen=True, eq=False)
class ChosenMethod:
    """A method with its settings: what becomes of some layers. Known by itself, since settings need have no hash.

    Args:
        method: which.
        params: its settings.
    """

    method: TransferMethod[Any]
    params: Params

    @classmethod
    def of(cls, job: LayerJob) -> "ChosenMethod":
        """That of a layer."""
        return cls(*registry.resolve(job.method, job.params))

    @cached_property
    def needs(self) -> Needs:
        """What it reads."""
        return self.method.needs(self.params)

    @cached_property
    def bases(self) -> frozenset[str]:
        """Sides whose basis it needs."""
        sides = (("source", self.needs.basis), ("target", self.needs.target_basis))
        return frozenset(side for side, wanted in sides if wanted)


def further_cost(job: LayerJob) -> float:
    """Operations at a layer whose weights another LoRA had read and decomposed just before."""
    method, params = registry.resolve(job.method, job.params)
    cost = method.cost(job.shape, max(job.update.rank, rank_bound(job)), params, True)
    return cost.weight


def cold_cost(way: ChosenMethod, shape: tuple[int, int], rank: int) -> float:
    """Operations at a layer of which nothing is in the cache."""
    cost = way.method.cost(shape, rank, way.params, False)
    cost += costs.thin_basis(*shape).times(way.needs.basis + way.needs.target_basis)
    return cost.weight


def function_bytes(update: LayerUpdate) -> int:
    """Bytes besides itself of an update that is a function of the source's weight: that weight, changed and not."""
    return costs.matrix_bytes(*(update.whole or update.shape), 3) if update.weight else 0


def peak_bytes(way: ChosenMethod, shape: tuple[int, int], rank: int) -> int:
    """Memory of one layer at its largest moment: while its weights are read and decomposed, or in the method's hands.

    Both weights are in float32 from hashing on, their files' pages beside them. A decomposition adds
    the vectors of both sides, a copy in which they are kept, and some p x p matrices of the eigenproblem.
    """
    m, n = shape
    method, params, needs = way.method, way.params, way.needs
    if needs.nothing:
        return method.memory(shape, rank, params) + SMALL_CHANGE
    pair = costs.matrix_bytes(m, n, 3.5)
    p = min(m, n)
    decomposing = 0
    if needs.basis or needs.target_basis:
        decomposing = costs.matrix_bytes(m, n, 4) + costs.matrix_bytes(p, p, 6)
    if needs.basis and needs.target_basis:
        decomposing += costs.basis_bytes(m, n)  # the first is there while the second is found
    return max(pair, decomposing, method.memory(shape, rank, params)) + SMALL_CHANGE


_STRIPS = 150_000_000  # bytes of the strips that what makes copies takes at once on a card,
_OF_A_LAYER = 6  # and for an entry of a layer that is smaller than they are
# As in core.truncation: a rank beyond these shares of the shorter side is cut by the Gram matrix of the new update, or
_BY_GRAM, _EXACT = 1 / 16, 1 / 4  # by a whole decomposition


def card_bytes(way: ChosenMethod, shape: tuple[int, int], rank: int, rule: RankRule) -> int:
    """Memory of a CUDA device that one layer takes at its largest moment, without what CUDA takes for itself.

    Weights come and are decomposed in strips there, and the drift is formed in a weight's place, so that it is less
    than `peak_bytes`; tests count it on a device that is not there.

    Args:
        way: what becomes of it.
        shape: (out, in).
        rank: of the LoRA's update.
        rule: for the output.
    """
    return matrices_on_a_card(way, shape, rank, rule) + min(_STRIPS, _OF_A_LAYER * shape[0] * shape[1])


def matrices_on_a_card(way: ChosenMethod, shape: tuple[int, int], rank: int, rule: RankRule) -> int:
    """`card_bytes` but for the strips. Arguments as there."""
    m, n = shape
    p, method, needs = min(m, n), way.method, way.needs
    wanted = int(rule.value) if rule.kind == "fixed" else 0
    found = method.memory(shape, max(rank, wanted), way.params)
    if needs.basis or needs.target_basis:
        decomposing = costs.matrix_bytes(m, n, 2) + costs.matrix_bytes(p, p, 6)
        if needs.target_basis:  # while the source's weight, or its basis, is there
            decomposing += costs.basis_bytes(m, n) if needs.basis else costs.matrix_bytes(m, n)
        found = max(found, decomposing)
    whole = rule.kind == "full" or wanted > _EXACT * p or (rule.kind == "energy" and not method.keeps_rank)
    if whole:  # the new update as a matrix, its vectors, and both factors
        found += costs.matrix_bytes(m, n, 3) + costs.matrix_bytes(p, p)
    elif wanted > _BY_GRAM * p:  # its Gram matrix with the vectors, and its products with these
        found += costs.matrix_bytes(p, p, 3) + costs.matrix_bytes(m + n, wanted, 2)
    return found


def rank_bound(job: LayerJob) -> int:
    """Rank of a layer's output at most."""
    method, params = registry.resolve(job.method, job.params)
    own, most = method.most_rank(job.shape, job.update.rank, params), job.rank.most(min(job.shape))
    if own is None or job.amount < 1 or job.rank.kind == "full":
        return most
    return own if job.rank.kind == "fixed" and own <= job.rank.value else min(own, most)  # not cut, so as wide as it is
