"""Every figure of a layer, once more from whole matrices and by its definition alone, whichever side is longer.

Where the drift is undone and what is arbitrated is read off the updates that `casa` itself makes.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

from loraport.analysis.layer import LayerTensors, analyse, project
from loraport.analysis.results import LayerAnalysis
from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from loraport.methods.casa.params import CasaParams
from loraport.methods.casa.routing import DriftRouting


@dataclass(frozen=True)
class Given:
    """A layer, in whole matrices: full bases, the routing matrices in them, and what the analysis says."""

    U: Tensor
    S: Tensor
    V: Tensor
    D: Tensor
    lora: Tensor
    new: tuple[Tensor, Tensor]
    found: LayerAnalysis

    @property
    def W(self) -> Tensor:
        p = len(self.S)
        return (self.U[:, :p] * self.S) @ self.V[:, :p].T

    def routed(self, X: Tensor) -> Tensor:
        return self.U.T @ X @ self.V

    @property
    def head(self) -> int:
        held = self.S.square().cumsum(0) / self.S.square().sum()
        return int((held < 0.9).sum()) + 1

    def after(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Thin decomposition of the changed weight: U', S', V'."""
        U, S, Vh = torch.linalg.svd(self.W + X, full_matrices=False)
        return U, S, Vh.T


@pytest.fixture(scope="module", params=[(40, 24), (24, 24), (24, 40)], ids=["tall", "square", "wide"])
def given(request) -> Given:
    (m, n), p = request.param, min(request.param)
    generator = Generator().manual_seed(m + 2 * n)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    U, V = torch.linalg.qr(random(m, m)).Q, torch.linalg.qr(random(n, n)).Q
    S = torch.logspace(math.log10(6), math.log10(0.3), p, dtype=torch.float64)
    S[3:5] = S[3] * torch.tensor([1.0, 0.999])  # two that lie close: a cluster
    D = 0.05 * random(m, n)
    lora = LowRank(random(m, 3), 0.04 * random(3, n))
    thin = SpectralBasis(U[:, :p].contiguous(), S, V[:, :p].T.contiguous())
    upright, drift = (thin, D) if m >= n else (thin.T, D.T)
    routing = DriftRouting.of(upright, DenseOperator(drift), upright.head(0.9), "head")
    tensors = LayerTensors("blocks.0.ffn.2", (m, n), thin, routing, DenseOperator(D), {"style": lora}, None)
    new = []
    for arbitrate in (False, True):
        method, params = registry.resolve("casa", {"arbitrate": arbitrate})
        inputs = LayerInputs("layer", lora, basis=thin, drift=DenseOperator(D))
        new.append(method.transfer(inputs, params).update.dense())
    return Given(U, S, V, D, lora.dense(), (new[0], new[1]), analyse(project(tensors, CasaParams(), seed=4)))


def close(found: object, expected: object, absolute: float = 1e-4) -> None:
    """What is kept has four or five digits."""
    found, expected = (torch.as_tensor(each, dtype=torch.float64) for each in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=absolute)


def clusters(C: Tensor, S: Tensor, tau: float) -> list[list[int]]:
    """Directions of the head that are reached from each other, in the order of their first."""
    k, left, found = len(S), set(range(len(S))), []
    mixed = C[:k, :k].abs() / ((S[:, None] - S[None, :]).abs() + 1e-6) > tau
    while left:
        group, new = set(), {min(left)}
        while new:
            group |= new
            new = {j for i in new for j in range(k) if (mixed[i, j] or mixed[j, i]) and i != j} - group
        left -= group
        found.append(sorted(group))
    return found


def test_singular_values_and_energies(given):
    drift, lora = given.found.drift, given.found.loras[0].update
    size = given.S.norm()
    for update, X in ((drift, given.D), (lora, given.lora)):
        after = given.after(X)[1]
        close(update.norm, X.norm())
        close(update.relative.value, X.norm() / size)
        close(update.rigidity.value, (after - given.S).norm() / size)
        close(update.singular_values, after[list(given.found.at)])
        own = torch.linalg.svdvals(X).square()
        close(update.largest.value, own[0].sqrt() / given.S[0])
        close(update.energy.kept, [own[:rank].sum() / own.sum() for rank in update.energy.ranks])
        C, h = given.routed(X), -(-given.head // 10)
        inside = torch.zeros(C.shape, dtype=torch.bool)
        inside[:h], inside[:, :h] = True, True
        close(update.head_concentration.value, C[inside].square().mean() / C.square().mean())


def test_directions(given):
    p = len(given.S)
    for update, X in ((given.found.drift, given.D), (given.found.loras[0].update, given.lora)):
        U, _, V = given.after(X)
        left, right = (given.U.T @ U), (given.V.T @ V)  # old downwards, new to the right
        close(update.intruders.value, sum(left[:, j].abs().max() < 0.5 for j in range(10)))
        for window in update.windows:
            width = len(window.similarity)
            at = range(window.first, window.first + width)
            close(window.similarity, [[abs(left[i, j]) for j in at] for i in at], 1e-3)
            close(window.aligned.value, sum(abs(s[i, i]) for s in (left, right) for i in at) / (2 * width))
            close(window.inside.value, sum(s[i, j] ** 2 for s in (left, right) for i in at for j in at) / (2 * width))
        assert update.rotation.first == tuple(range(p))  # few enough that each is a group
        close(update.rotation.measured, [math.sqrt(1 - (left[i, i] ** 2 + right[i, i] ** 2) / 2) for i in range(p)])


def test_predicted_rotations(given):
    for update, X in ((given.found.drift, given.D), (given.found.loras[0].update, given.lora)):
        C, S, p = given.routed(X), given.S, len(given.S)
        expected = []
        for j in range(p):
            kept = []
            for side in (C, C.T):
                tangents = [
                    math.tan(math.atan(2 * (S[j] * side[i, j] + S[i] * side[j, i]) / (S[j] ** 2 - S[i] ** 2)) / 2) ** 2
                    for i in range(p)
                    if i != j
                ]
                outside = float(side[p:, j].square().sum() / S[j] ** 2)
                kept.append(1 / (1 + sum(tangents) + outside))
            expected.append(math.sqrt(1 - sum(kept) / 2))
        close(update.rotation.predicted, expected)


def test_densities_and_maps(given):
    k, layer = given.head, given.found
    one = layer.loras[0]
    drift, lora = (given.routed(X)[:k, :k] for X in (given.D, given.lora))
    for routing, own in ((layer.routing, drift), (one.routing, lora)):
        groups = clusters(own, given.S[:k], CasaParams().tau)
        assert 1 < len(groups) < k <= 16
        assert (routing.head, routing.clusters) == (k, len(groups))
        assert (list(routing.cells), routing.largest) == ([len(g) for g in groups], max(map(len, groups)))
        close(routing.sigma, [given.S[g].mean() for g in groups])
        for densities, C in ((routing.drift, drift), (routing.lora, lora)):
            if densities is not None:
                close(densities.send, [C[:, g].norm(dim=0).mean() for g in groups])
                close(densities.receive, [C[g].norm(dim=1).mean() for g in groups])
                close(densities.map, [[C[a][:, b].square().mean().sqrt() for b in groups] for a in groups])
    groups = clusters(lora, given.S[:k], CasaParams().tau)
    blocks = [[(lora[a][:, b], drift[a][:, b]) for b in groups] for a in groups]
    close(one.meeting.interaction, [[(x * y).abs().mean() for x, y in row] for row in blocks], 1e-7)
    close(one.meeting.alignment, [[(x * y).sum() / x.norm() / y.norm() for x, y in row] for row in blocks])


def test_where_lora_and_drift_meet(given):
    meeting, k = given.found.loras[0].meeting, given.head
    C, mine = given.routed(given.D), given.routed(given.lora)
    close(meeting.cosine.value, (C * mine).sum() / C.norm() / mine.norm())
    head, own = C[:k, :k], mine[:k, :k]
    close(meeting.head_cosine.value, (head * own).sum() / head.norm() / own.norm())
    p = len(given.S)
    close(meeting.sign_agreement.value, (C[:p, :p] * mine[:p, :p] > 0).double().mean())
    close(meeting.sign_deviation, 0.5 / p)  # of p x p signs thrown like coins
    h = -(-k // 10)
    first = torch.zeros(k, k, dtype=torch.bool)
    first[:h], first[:, :h] = True, True
    product = (head * own).abs()
    close(meeting.interaction_in_head.value, product[first].sum() / product.sum() / first.double().mean())


def test_the_intervention_is_what_casa_does(given):
    told = given.found.loras[0].meeting.intervention
    C, k = given.routed(given.D), given.head
    restored_only, whole = (given.routed(given.lora - new) for new in given.new)
    restored = restored_only.abs() > 1e-9
    torch.testing.assert_close(restored_only[restored], C[restored])
    arbitrated = (whole - restored_only).abs() > 1e-9
    assert 0 < int(arbitrated.sum()) < arbitrated.numel() / 4
    assert not bool((arbitrated & restored).any())
    close(told.restored.value, restored.double().mean())
    close(told.arbitrated.value, arbitrated.double().mean())
    close(told.preserved.value, (~restored & ~arbitrated).double().mean())
    close(told.drift_undone.value, C[restored].square().sum() / C.square().sum())
    groups = clusters(given.routed(given.lora)[:k, :k], given.S[:k], CasaParams().tau)
    rows, cols = ([*groups, list(range(k, side))] for side in C.shape)
    for marks, grid in ((restored, told.restored_map), (arbitrated, told.arbitrated_map)):
        close(grid, [[marks[a][:, b].double().mean() for b in cols] for a in rows], 1e-3)


def test_certificates_hold_what_was_measured(given):
    U, _, V = given.after(given.D)
    largest, size = float(torch.linalg.matrix_norm(given.D, 2)), float(given.D.norm())
    for each in given.found.routing.certificates.shown:
        reach, apart = math.sqrt(2) * min(math.sqrt(each.size) * largest, size), each.gap - largest
        assert each.bound == (None if apart <= 0 else pytest.approx(reach / apart, rel=1e-3))
        if each.size == 1:
            at = each.first
            turns = [1 - float(old[:, at] @ new[:, at]) ** 2 for old, new in ((given.U, U), (given.V, V))]
            close(each.measured, math.sqrt(sum(turns)))
            close(each.sigma, given.S[at])
            gaps = [abs(float(given.S[at] - other)) for i, other in enumerate(given.S) if i != at]
            close(each.gap, min(gaps))
            assert each.bound is None or each.measured <= each.bound
