"""Compression: nearly as good as the exact SVD on the hardest spectra, with an exact account of what it keeps."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraport.core import truncation
from loraport.core.lowrank import LowRank
from loraport.core.operators import Blend, DenseOperator, Routed, blended
from loraport.core.truncation import truncated_svd
from loraport.errors import NumericalError

N = 320


def orthonormal(n, k, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, generator=g, dtype=torch.float64)).Q


def gaussian(m, n, seed):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hard(kind: str) -> torch.Tensor:
    at = torch.arange(1, N + 1, dtype=torch.float64)
    U, V = orthonormal(N, N, 1), orthonormal(N, N, 2)
    if kind == "gaussian":
        return gaussian(N, N, 0)
    S = {
        "flat": torch.ones_like(at),
        "slow": torch.linspace(1, 0.5, N, dtype=torch.float64),
        "power law": at**-0.5,
        "plateaus": torch.where(at <= 20, 1.0, torch.where(at <= 100, 0.97, 0.5)),
        "steep": torch.exp(-at / 3),
        "exact rank 7": torch.where(at <= 7, 1.0, 0.0),
    }[kind]
    return (U * S) @ V.T


KINDS = ["gaussian", "flat", "slow", "power law", "plateaus", "steep", "exact rank 7"]


def best(M, rank):
    energies = torch.linalg.svdvals(M.double()).square()
    return float(energies[:rank].sum() / energies.sum())


def kept(M, update):
    M = M.double()
    return 1 - float((M - update.to(torch.float64).dense()).norm() ** 2 / M.norm() ** 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 8, 32, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_captures_what_the_best_approximation_captures(kind, rank, dtype):
    M = hard(kind).to(dtype)
    hints = [None, LowRank(M[:, :16].clone(), torch.eye(16, N, dtype=dtype))]
    for seed, start in enumerate(hints):
        small = truncated_svd(DenseOperator(M), rank=rank, start=start, seed=seed)
        assert small.rank == small.update.rank == rank
        assert small.update.dtype == dtype
        assert small.energy_kept >= 0.999 * best(M, rank)
        assert small.energy_kept == pytest.approx(kept(M, small.update), abs=2e-6)


@pytest.mark.parametrize("shape", [(N, 96), (96, N)])
def test_rectangles(shape):
    M = gaussian(*shape, 5)
    small = truncated_svd(DenseOperator(M), rank=16)
    assert small.energy_kept >= 0.999 * best(M, 16)
    assert small.energy_kept == pytest.approx(kept(M, small.update), abs=1e-9)


def test_a_hint_that_is_invariant_and_misleading_does_not_hide_the_rest():
    U, V = orthonormal(N, 60, 1), orthonormal(N, 60, 2)
    strength = torch.cat([torch.full((20,), 0.1), torch.linspace(2, 1, 40)]).double()
    M = (U * strength) @ V.T  # the hint's 20 directions are the weakest, and M maps them onto themselves
    hint = LowRank(U[:, :20] * 0.1, V[:, :20].T)
    small = truncated_svd(DenseOperator(M), rank=20, start=hint)
    assert small.energy_kept >= 0.999 * best(M, 20)


def test_an_update_plus_drift_as_in_practice():
    update = LowRank(gaussian(N, 16, 3), gaussian(16, N, 4) / math.sqrt(N))
    for share in (0.1, 1.0, 5.0):
        noise = gaussian(N, N, 5)
        M = (update.dense() + noise * share * update.norm() / noise.norm()).float()
        for rank in (16, 32):
            small = truncated_svd(DenseOperator(M), rank=rank, start=update.to(torch.float32))
            assert small.energy_kept >= 0.999 * best(M, rank)


def test_weak_directions_of_an_exact_update_survive_float32():
    U, V = orthonormal(N, 32, 1), orthonormal(N, 32, 2)
    M = ((U * torch.logspace(0, -4, 32, dtype=torch.float64)) @ V.T).float()
    small = truncated_svd(DenseOperator(M), rank=32, start=LowRank(M, torch.eye(N)).truncated(32))
    assert float((small.update.dense() - M).norm() / M.norm()) < 2e-6


def test_factors_are_balanced_and_ordered():
    small = truncated_svd(DenseOperator(hard("power law")), rank=10).update
    left, right = small.B.T @ small.B, small.A @ small.A.T
    assert torch.allclose(left, right, atol=1e-9)
    assert torch.allclose(left, left.diagonal().diag(), atol=1e-9)
    assert bool((left.diagonal().diff() <= 0).all())


def test_same_seed_same_bytes_and_the_seed_matters_little():
    M = DenseOperator(hard("gaussian").float())
    first, again, other = (truncated_svd(M, rank=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.update.B, again.update.B)
    assert torch.equal(first.update.A, again.update.A)
    assert first.energy_kept == again.energy_kept
    assert other.energy_kept == pytest.approx(first.energy_kept, rel=1e-3)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 20), st.integers(0, 2**16))
def test_small_matrices_any_rank(m, n, rank, seed):
    M = gaussian(m, n, seed)
    small = truncated_svd(DenseOperator(M), rank=rank)
    assert small.rank == min(rank, m, n)
    assert small.energy_kept == pytest.approx(best(M, small.rank), abs=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_a_share_of_the_energy(share):
    M = hard("power law")
    small = truncated_svd(DenseOperator(M), energy=share)
    assert small.energy_kept >= share - 1e-9
    if small.rank > 1:
        assert best(M, small.rank - 1) < share
    low = LowRank(gaussian(30, 5, 0), gaussian(5, 20, 1))
    assert truncated_svd(low, energy=share).rank <= 5


def test_full_rank_is_the_matrix_itself():
    M = hard("gaussian")[:, :50]
    small = truncated_svd(DenseOperator(M), rank="full")
    assert (small.rank, small.energy_kept) == (50, pytest.approx(1.0))
    assert float((small.update.dense() - M).norm() / M.norm()) < 1e-12


@pytest.mark.parametrize("kind", ["dense", "lowrank"])
def test_zero_gives_zeros(kind):
    op = DenseOperator(torch.zeros(6, 4)) if kind == "dense" else LowRank.zeros(6, 4, 2)
    small = truncated_svd(op, rank=3)
    assert (small.rank, small.energy_kept, small.update.norm()) == (3, 1.0, 0.0)
    assert truncated_svd(op, rank="full").rank == 4
    assert truncated_svd(op, energy=0.9).update.norm() == 0.0


def test_low_rank_operators_are_cut_exactly():
    low = LowRank(gaussian(30, 5, 0), gaussian(5, 20, 1))
    for rank in (2, 5, 9, "full"):
        small = truncated_svd(low, rank=rank)
        count = 20 if rank == "full" else rank
        assert small.update.rank == small.rank == count
        assert small.energy_kept == pytest.approx(best(low.dense(), count), abs=1e-12)


def test_through_a_basis_and_through_a_blend():
    U, V = orthonormal(40, 24, 1), orthonormal(30, 20, 2)
    routed = Routed(U, DenseOperator(gaussian(24, 20, 3)), V.T)
    small = truncated_svd(routed, rank=6)
    assert small.energy_kept == pytest.approx(best(routed.dense(), 6), rel=1e-3)
    assert small.energy_kept == pytest.approx(kept(routed.dense(), small.update), abs=1e-9)
    blend = Blend(LowRank(gaussian(40, 3, 4), gaussian(3, 30, 5)), routed, 0.4)
    assert float((blend.dense() - 0.6 * blend.a.dense() - 0.4 * routed.dense()).norm()) < 1e-10
    assert blend.norm() == pytest.approx(float(blend.dense().norm()))
    assert truncated_svd(blend, rank=6).energy_kept == pytest.approx(best(blend.dense(), 6), rel=1e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("inner", ["lowrank", "dense", "routed"])
def test_the_gram_matrix_and_norm_of_a_blend(inner, t):
    U, V = orthonormal(40, 24, 1), orthonormal(30, 20, 2)
    b = {
        "lowrank": LowRank(gaussian(40, 7, 6), gaussian(7, 30, 7)),
        "dense": DenseOperator(gaussian(40, 30, 8)),
        "routed": Routed(U, DenseOperator(gaussian(24, 20, 3)), V.T),
    }[inner]
    blend, X = Blend(LowRank(gaussian(40, 3, 4), gaussian(3, 30, 5)), b, t), gaussian(30, 4, 9)
    M = (1 - t) * blend.a.dense() + t * b.dense()
    for found, wanted in ((blend.gram(X), M.T @ M @ X), (blend.T.gram(blend.apply(X)), M @ M.T @ M @ X)):
        assert float((found - wanted).norm()) < 1e-12 * float(wanted.norm())
    assert blend.norm() == pytest.approx(float(M.norm()), rel=1e-12)


@pytest.mark.parametrize("shape", ["square", "tall", "wide"])
def test_a_blend_with_a_routed_update_lies_in_its_core(shape):
    """Where nothing of the other update lies outside: then the search for the cut needs no product with a basis."""
    m, n = {"square": (30, 30), "tall": (50, 30), "wide": (30, 50)}[shape]
    U, V = (None if side > 30 else orthonormal(side, side, seed) for side, seed in ((m, 1), (n, 2)))
    routed = Routed(U, DenseOperator(gaussian(m, n, 3)), None if V is None else V.T)
    direct = LowRank(gaussian(m, 3, 4), gaussian(3, n, 5))
    blend = blended(direct, routed, 0.4)
    assert isinstance(blend, Routed)
    assert float((blend.dense() - 0.6 * direct.dense() - 0.4 * routed.dense()).norm()) < 1e-10
    assert truncated_svd(blend, rank=6).energy_kept == pytest.approx(best(blend.dense(), 6), rel=1e-3)
    thin = Routed(orthonormal(m, 20, 1), DenseOperator(gaussian(20, n, 3)), None)
    beside = blended(direct, thin, 0.4)  # a thin basis cannot hold the whole of it
    assert float((beside.dense() - 0.6 * direct.dense() - 0.4 * thin.dense()).norm()) < 1e-10


@pytest.mark.parametrize("on_its_side", [False, True])
def test_what_lies_near_need_not_be_projected_again(on_its_side):
    """Given in the coordinates of the core it leads to the same bits as in those of the layer."""
    U, V = orthonormal(90, 60, 1), orthonormal(80, 60, 2)
    start = LowRank(gaussian(90, 4, 4), gaussian(4, 80, 5))
    core = DenseOperator(gaussian(60, 60, 3) / 8 + 9 * (U.T @ start.B) @ (start.A @ V))
    plain = Routed(U, core, V.T)
    knowing = Routed(U, core, V.T, plain.project(start))
    if on_its_side:
        plain, knowing, start = plain.T, knowing.T, start.T
    wanted = truncated_svd(plain, rank=4, start=start, seed=7)
    for told in (None, start):
        found = truncated_svd(knowing, rank=4, start=told, seed=7)
        assert torch.equal(found.update.A, wanted.update.A)
        assert torch.equal(found.update.B, wanted.update.B)


def test_the_last_look_is_foreseen_and_changes_nothing(monkeypatch):
    """Eigenvectors are asked for with the last look, or once more after it, and the cut is the same."""
    M = DenseOperator(hard("power law"))
    calls = []
    for name in ("eigh", "eigvalsh"):
        real = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda H, name=name, real=real: calls.append((name, len(H))) or real(H))
    small = truncated_svd(M, rank=12, seed=3)
    looks = [call for call in calls if call[1] > 20]
    assert looks[-1][0] == "eigh"
    assert max(Counter(size for _, size in looks).values()) == 1
    calls.clear()
    monkeypatch.setattr(truncation, "_likely_last", lambda energies, total: False)
    again = truncated_svd(M, rank=12, seed=3)
    assert len(calls) > len(looks)
    assert torch.equal(small.update.B, again.update.B)
    assert torch.equal(small.update.A, again.update.A)


def test_what_is_not_finite_is_refused_by_name():
    M = torch.ones(4, 4)
    M[0, 0] = math.nan
    with pytest.raises(NumericalError, match=r"blocks\.1\.q"):
        truncated_svd(DenseOperator(M), rank=2, name="blocks.1.q")


@pytest.mark.parametrize("arguments", [{}, {"rank": 2, "energy": 0.5}, {"rank": -1}, {"rank": "most"}, {"energy": 0.0}])
def test_senseless_requests(arguments):
    with pytest.raises(ValueError, match=r"rank|share"):
        truncated_svd(DenseOperator(torch.ones(4, 4)), **arguments)


class Counted(DenseOperator):
    """Counts what is asked of it, and cannot be had as a matrix."""

    def __init__(self, W):
        super().__init__(W)
        object.__setattr__(self, "asked", Counter())

    @property
    def T(self):
        other = Counted(self.W.T)
        object.__setattr__(other, "asked", self.asked)
        return other

    def apply(self, X):
        self.asked["columns"] += X.shape[1]
        return super().apply(X)

    def gram_matrix(self):
        self.asked["gram"] += 1
        return super().gram_matrix()

    def dense(self):
        raise AssertionError("the whole matrix was asked for")


@pytest.mark.parametrize(("shape", "rank"), [((520, 520), 70), ((700, 520), 40), ((520, 700), 40), ((520, 520), 260)])
def test_a_high_rank_of_a_large_matrix_takes_its_gram_matrix_and_no_search(shape, rank):
    op = Counted(gaussian(*shape, 1).float())
    small = truncated_svd(op, rank=rank)
    assert op.asked == {"gram": 1, "columns": rank + 8}
    assert small.energy_kept == pytest.approx(best(op.W, rank), rel=1e-6)
    assert small.energy_kept == pytest.approx(kept(op.W, small.update), abs=2e-6)


def test_a_search_that_is_given_up_takes_no_whole_decomposition(monkeypatch):
    monkeypatch.setattr(truncation, "_SPACE", 1 / 4)
    op = Counted(gaussian(520, 520, 1).float())
    small = truncated_svd(op, rank=40)
    assert op.asked["gram"] == 1
    assert op.asked["columns"] < 200
    assert small.energy_kept == pytest.approx(best(op.W, 40), rel=1e-6)


def test_a_hint_of_full_rank_is_not_decomposed(monkeypatch):
    M = gaussian(300, 300, 1).float()
    start = LowRank.from_dense(M)
    monkeypatch.setattr(LowRank, "svd", lambda self: pytest.fail("for a hint"))
    assert truncated_svd(DenseOperator(M), rank=8, start=start).energy_kept >= 0.999 * best(M, 8)


@pytest.mark.parametrize("kind", ["square", "tall", "wide"])
@pytest.mark.parametrize("inner", ["dense", "routed"])
def test_the_gram_matrix_of_a_blend_as_a_whole(kind, inner):
    m, n = {"square": (30, 30), "tall": (50, 30), "wide": (30, 50)}[kind]
    dense = DenseOperator(gaussian(m, n, 3))
    b = dense if inner == "dense" else Routed(None, dense, orthonormal(n, n, 2))
    blend = Blend(LowRank(gaussian(m, 3, 4), gaussian(3, n, 5)), b, 0.4)
    M = blend.dense()
    assert float((blend.gram_matrix() - M.T @ M).tril().norm()) < 1e-11 * float((M.T @ M).norm())
