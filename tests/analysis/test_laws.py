"""The figures of one layer against their definitions, on matrices small enough to form everything."""

import math

import pytest
import torch
from torch import Generator, Tensor

from loraport.analysis import certificates, nulls, routing_maps, spectrum, subspaces
from loraport.analysis.coordinates import Coordinates, turned
from loraport.analysis.depth import by_depth, kind_and_block
from loraport.analysis.layer import LayerTensors, Stored, analyse, project
from loraport.analysis.results import LayerAnalysis
from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.methods.casa.clusters import Clusters
from loraport.methods.casa.params import CasaParams
from loraport.methods.casa.routing import DriftRouting

TALL, SQUARE = (40, 24), (24, 24)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def weight(shape: tuple[int, int], seed: int = 1) -> SpectralBasis:
    """Singular values from 8 to 0.3."""
    m, n = shape
    U, V = (torch.linalg.qr(random(side, n, seed=seed + at)).Q for at, side in enumerate((m, n)))
    return SpectralBasis(U, torch.logspace(math.log10(8), math.log10(0.3), n, dtype=torch.float64), V.T)


def dense(basis: SpectralBasis) -> Tensor:
    return (basis.U * basis.S) @ basis.Vh


def coordinates(basis: SpectralBasis, D: Tensor) -> Coordinates:
    return Coordinates.of_routing(DriftRouting.of(basis, DenseOperator(D), len(basis.S), "head"))


@pytest.mark.parametrize("shape", [TALL, SQUARE])
@pytest.mark.parametrize("rank", [None, 3])
def test_the_changed_weight_in_coordinates_is_the_changed_weight(shape, rank):
    basis = weight(shape)
    D = 0.1 * random(*shape, seed=5)
    update = coordinates(basis, D)
    if rank is not None:
        factors = LowRank(random(shape[0], rank, seed=6), 0.1 * random(rank, shape[1], seed=7))
        D, update = factors.dense(), Coordinates.of_factors(basis, factors)
    after = turned(basis.S, update)
    U, S, Vh = torch.linalg.svd(dense(basis) + D, full_matrices=False)
    assert update.norm == pytest.approx(float(D.norm()))
    torch.testing.assert_close(after.S, S)
    torch.testing.assert_close(after.left.abs(), (basis.U.T @ U).abs(), atol=1e-9, rtol=0)
    torch.testing.assert_close(after.right.abs(), (basis.Vh @ Vh.T).abs(), atol=1e-9, rtol=0)
    torch.testing.assert_close(after.left.square().sum(0) + after.left_rest, torch.ones_like(S))
    torch.testing.assert_close(update.gram().tril(), (basis.Vh @ D.T @ D @ basis.Vh.T).tril())


def test_rigidity_by_its_definition_and_to_first_order():
    basis = weight(SQUARE)
    along = basis.U[:, :1] @ basis.Vh[:1]  # changes the first singular value alone, by what is added
    after = turned(basis.S, coordinates(basis, 0.5 * along))
    assert spectrum.rigidity(basis.S, after.S) == pytest.approx(0.5 / float(basis.S.norm()))
    across = 1e-5 * random(*SQUARE, seed=2)
    update = coordinates(basis, across)
    measured = spectrum.rigidity(basis.S, turned(basis.S, update).S)
    assert float(update.C.diagonal().norm() / basis.S.norm()) == pytest.approx(measured, rel=1e-3)


def test_mixing_is_the_rotation_of_small_updates():
    basis = weight(TALL)
    update = coordinates(basis, 1e-6 * random(*TALL, seed=3))
    after = turned(basis.S, update)
    left, right, beyond = subspaces.mixing(basis.S, update)
    off = ~torch.eye(24, dtype=torch.bool)
    torch.testing.assert_close(left[off], after.left.square()[off], rtol=1e-3, atol=1e-15)
    torch.testing.assert_close(right[off], after.right.square()[off], rtol=1e-3, atol=1e-15)
    torch.testing.assert_close(beyond, after.left_rest, rtol=1e-2, atol=1e-15)


def test_directions_that_lie_close_mix_by_45_degrees_at_most():
    S = torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)
    left, right, beyond = subspaces.mixing(S, Coordinates(random(3, 3, seed=4), random(2, 3, seed=5)))
    for shares, more in ((left, beyond), (right, torch.zeros_like(beyond))):
        torch.testing.assert_close(shares.sum(0) + more, torch.ones(3, dtype=torch.float64))
        assert float((shares - torch.diag(shares.diagonal())).max()) <= 0.5


@pytest.mark.parametrize("shape", [TALL, SQUARE])
@pytest.mark.parametrize("size", [0.01, 0.3, 2.0])
def test_no_cluster_turns_further_than_its_certificate_says(shape, size):
    basis, clusters = weight(shape), Clusters(torch.tensor([0, 0, 1, 2, 2, 1, *range(3, 15)]), 15)
    for seed in range(20):
        D = size * random(*shape, seed=seed) / 6
        update = coordinates(basis, D)
        after = turned(basis.S, update)
        gap = certificates.gaps(basis.S, clusters, square=shape[0] == shape[1])
        bound = certificates.bounds(gap, clusters.sizes, float(D.norm()), float(torch.linalg.matrix_norm(D, 2)))
        labels = torch.full((24,), -1)
        labels[:18] = clusters.labels
        turns = subspaces.leaving(after.left.square(), labels, 15, after.left_rest)
        turns = (turns + subspaces.leaving(after.right.square(), labels, 15)).clamp_min(0).sqrt()
        assert bool((turns <= bound + 1e-9).all())
        assert size > 0.01 or bool((bound < 1).any())  # and it says something where the drift is small


def test_gaps_are_distances_to_all_other_singular_values():
    S = torch.tensor([5.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    clusters = Clusters(torch.tensor([0, 1, 0]), 2)
    assert certificates.gaps(S, clusters, square=True).tolist() == [1.0, 1.0]
    assert certificates.gaps(S[:1], Clusters(torch.tensor([0]), 1), square=True).tolist() == [5.0]
    assert certificates.gaps(S[:3], clusters, square=False).tolist() == [1.0, 1.0]
    assert certificates.gaps(S[1:3], Clusters(torch.tensor([0, 0]), 1), square=False).tolist() == [2.0]


@pytest.mark.parametrize(("shape", "rank"), [((300, 60), None), ((60, 60), None), ((300, 60), 4)])
def test_a_gaussian_update_is_one(shape, rank):
    made = nulls.gaussian(shape, 3.0, torch.zeros((), dtype=torch.float64), Generator().manual_seed(1), rank=rank)
    assert made.norm == pytest.approx(3.0)
    energies = torch.linalg.eigvalsh(made.gram()).flip(0)
    if rank is not None:
        assert int((energies > 1e-9).sum()) == rank
        return
    expected = spectrum.energies_of_noise(shape)
    expected = expected * (9.0 / float(expected.sum()))
    torch.testing.assert_close(energies, expected, rtol=0.1, atol=0.02)
    assert float(energies[0]) ** 0.5 == pytest.approx(spectrum.largest_of_noise(3.0, shape), rel=0.08)
    k = shape[1]
    send, receive = routing_maps.densities(made.C)
    flat = 3.0 / math.prod(shape) ** 0.5 * k**0.5
    assert float(send.mean()) == pytest.approx(flat, rel=0.05)
    assert float(receive.mean()) == pytest.approx(flat, rel=0.05)
    assert routing_maps.concentration(made.C, made.rest_energy, shape[0], 6) == pytest.approx(1.0, abs=0.1)


def test_concentration_against_the_whole_matrix():
    basis, D = weight(TALL), random(*TALL, seed=8)
    update = coordinates(basis, D)
    whole = torch.linalg.svd(dense(basis), full_matrices=True)
    C = whole.U.T @ D @ whole.Vh.T
    mask = torch.zeros(TALL, dtype=torch.bool)
    mask[:5], mask[:, :5] = True, True
    expected = float(C[mask].square().sum() / C.square().sum()) / float(mask.double().mean())
    assert routing_maps.concentration(update.C, update.rest_energy, TALL[0], 5) == pytest.approx(expected)


def _of_noise(basis: SpectralBasis, D: Tensor, k: int) -> tuple[float, float, Tensor, Tensor]:
    """The figures of `nulls.Rounding` of a difference, all squared."""
    C = basis.U.T @ D @ basis.Vh.T
    outside = (D @ basis.Vh.T).square().sum(0) - C.square().sum(0)
    in_head = routing_maps.concentration(C, outside.clamp_min(0), len(D), routing_maps.leading(k))
    return (
        float(C.diagonal().square().sum() / basis.S.square().sum()), in_head**2,
        C[:k, :k].square().sum(0), C[:k, :k].square().sum(1),
    )  # fmt: skip


@pytest.mark.parametrize("rows", [None, 40])
def test_what_rounding_does_in_the_mean_is_what_draws_of_it_do(monkeypatch, rows):
    basis, size, k = weight((60, 40), seed=9), 0.7, 20
    found = nulls.rounding(basis, "BF16", size, k, Generator().manual_seed(3))
    drawn = [
        _of_noise(basis, nulls.rounding_noise(dense(basis), "BF16", size, Generator().manual_seed(seed)), k)
        for seed in range(120)
    ]
    mean = [sum(each) / len(drawn) for each in zip(*drawn, strict=True)]
    loose = 0.05
    if rows is not None:  # of which the figures of all rows are told
        monkeypatch.setattr(nulls, "_ROWS", rows)
        found, loose = nulls.rounding(basis, "BF16", size, k, Generator().manual_seed(3)), 0.15
    assert found.rigidity == pytest.approx(mean[0] ** 0.5, rel=loose)
    assert found.concentration == pytest.approx(mean[1] ** 0.5, rel=loose)
    for squares, norms in ((mean[2], found.senders), (mean[3], found.receivers)):
        torch.testing.assert_close(norms, squares.sqrt(), rtol=2 * loose, atol=0)
        assert float(norms.mean()) == pytest.approx(float(squares.sqrt().mean()), rel=loose)


def test_rounding_leans_on_the_head_as_that_of_real_numbers_does():
    basis = weight((64, 48), seed=9)
    W = dense(basis)
    found = nulls.rounding(basis, "BF16", 1.0, 24, Generator().manual_seed(3))
    true = []
    for seed in range(40):
        moved = W + 0.05 * random(64, 48, seed=seed)
        lost = moved.bfloat16().double() - moved - (W.bfloat16().double() - W)
        true.append(_of_noise(basis, lost, 24)[1])
    assert found.concentration == pytest.approx((sum(true) / len(true)) ** 0.5, rel=0.05)
    assert found.concentration > 1.05


def test_cells_keep_the_order_of_clusters_and_fill_up_evenly():
    clusters = Clusters(torch.arange(100), 100)
    cells = routing_maps.Cells.of(clusters)
    assert cells.count == 16
    assert bool((cells.labels.diff() >= 0).all())
    assert set(cells.sizes.tolist()) <= {6, 7}
    few = Clusters(torch.tensor([0, 1, 0, 2]), 3)
    assert routing_maps.Cells.of(few).labels.tolist() == [0, 1, 0, 2]


def test_alignment_of_noise_is_what_random_drifts_have():
    cells = routing_maps.Cells.of(Clusters(torch.tensor([0] * 5 + [1] * 2 + [2]), 3))
    lora = random(8, 8, seed=1)
    seen = [
        float(routing_maps.alignment(lora, random(8, 8, seed=seed + 10), cells).abs().mean()) for seed in range(300)
    ]
    assert routing_maps.alignment_of_noise(cells) == pytest.approx(sum(seen) / 300, rel=0.05)


def test_names_of_layers():
    assert kind_and_block("blocks.7.self_attn.q") == ("self_attn.q", 7)
    assert kind_and_block("single_blocks.3.linear1") == ("single_blocks.linear1", 3)
    assert kind_and_block("head.head") == ("head.head", None)
    shuffled = ["blocks.10.ffn.0", "blocks.2.self_attn.q", "blocks.2.ffn.0"]
    assert sorted(shuffled, key=by_depth) == [*shuffled[1:], shuffled[0]]


def whole(
    shape: tuple[int, int], D: Tensor, updates: dict[str, LowRank], stored: Stored | None = None
) -> LayerAnalysis:
    """All figures of a layer, long side downwards or not."""
    m, n = shape
    basis = weight((max(shape), min(shape)))
    upright = D if m >= n else D.T
    drift = DenseOperator(upright)
    params = CasaParams()
    routing = DriftRouting.of(basis, drift, basis.head(0.9), "head")
    given = basis if m >= n else basis.T
    tensors = LayerTensors("blocks.0.ffn.2", shape, given, routing, DenseOperator(D), updates, stored)
    return analyse(project(tensors, params, seed=4))


def updates(shape: tuple[int, int]) -> dict[str, LowRank]:
    return {"style": LowRank(random(shape[0], 3, seed=20), 0.02 * random(3, shape[1], seed=21))}


@pytest.mark.parametrize("shape", [TALL, SQUARE])
def test_without_a_drift_nothing_moved(shape):
    found = whole(shape, torch.zeros(shape, dtype=torch.float64), updates(shape))
    drift = found.drift
    for figure in (drift.relative, drift.rigidity, drift.head_concentration, drift.largest):
        assert abs(figure.value) < 1e-9
        assert abs(figure.gaussian) < 1e-9
    assert drift.intruders.value == 0
    assert all(window.aligned.value == pytest.approx(1) for window in drift.windows)
    assert all(abs(value) < 1e-6 for value in drift.rotation.measured + drift.rotation.predicted)
    assert found.routing.certificates.directions.value == 1.0
    assert found.loras[0].meeting.cosine.value == 0.0
    assert found.loras[0].meeting.intervention.drift_undone.value == 0.0


def test_a_layer_and_its_transpose_tell_the_same():
    D, lora = 0.05 * random(*TALL, seed=30), updates(TALL)["style"]
    stored = Stored("BF16", 0.002)
    one = whole(TALL, D, {"style": lora}, stored)
    other = whole((TALL[1], TALL[0]), D.T.contiguous(), {"style": lora.T}, stored)
    assert one.drift.rigidity == other.drift.rigidity
    assert one.routing.drift.send == other.routing.drift.receive
    assert one.routing.drift.send_rounding == other.routing.drift.receive_rounding
    mine, theirs = one.loras[0].meeting, other.loras[0].meeting
    assert mine.cosine == theirs.cosine
    assert mine.alignment == tuple(zip(*theirs.alignment, strict=True))
    assert mine.intervention.restored == theirs.intervention.restored
    assert mine.intervention.restored_map == tuple(zip(*theirs.intervention.restored_map, strict=True))


def test_meeting_against_the_whole_matrices():
    D, lora = 0.05 * random(*TALL, seed=30), updates(TALL)["style"]
    found = whole(TALL, D, {"style": lora})
    meeting, undone = found.loras[0].meeting, found.loras[0].meeting.intervention
    dense_lora = lora.dense()
    assert meeting.cosine.value == pytest.approx(float((dense_lora * D).sum() / dense_lora.norm() / D.norm()), rel=1e-3)
    assert undone.restored.value + undone.preserved.value + undone.arbitrated.value == pytest.approx(1.0, abs=1e-4)
    sizes = torch.tensor([*found.loras[0].routing.cells, TALL[0] - found.head], dtype=torch.float64)
    other = torch.tensor([*found.loras[0].routing.cells, TALL[1] - found.head], dtype=torch.float64)
    areas = sizes[:, None] * other[None, :] / math.prod(TALL)
    for share, grid in ((undone.restored, undone.restored_map), (undone.arbitrated, undone.arbitrated_map)):
        assert float((torch.tensor(grid, dtype=torch.float64) * areas).sum()) == pytest.approx(share.value, abs=1e-3)


def test_a_drift_that_the_cache_spares_a_square_layer_changes_no_bit():
    """Of such a layer the routing matrix is kept, so that the drift itself is there in some runs and not in others."""
    basis, D = weight(SQUARE), 0.05 * random(*SQUARE, seed=30)
    routing = DriftRouting.of(basis, DenseOperator(D), basis.head(0.9), "head")
    loras = {str(seed): LowRank(random(24, 3, seed=seed), random(3, 24, seed=seed + 1)) for seed in range(9)}
    along = [
        [lora.along for lora in project(tensors, CasaParams(), seed=4).loras.values()]
        for drift in (DenseOperator(D), None)
        for tensors in [LayerTensors("blocks.0.ffn.2", SQUARE, basis, routing, drift, loras, None)]
    ]
    assert along[0] == along[1] == pytest.approx([float((lora.dense() * D).sum()) for lora in loras.values()])


def test_an_intruder_is_seen_and_a_gaussian_of_its_norm_is_none():
    basis = weight(SQUARE)
    strange = LowRank(basis.U[:, 12:] @ torch.ones(12, 1).double(), torch.ones(1, 12).double() @ basis.Vh[12:])
    strange = strange.scaled(6.0 / strange.norm())
    found = whole(SQUARE, 1e-3 * random(*SQUARE, seed=3), {"strange": strange})
    assert found.loras[0].update.intruders.value == 1
    assert found.drift.intruders.value == 0
    assert found.drift.intruders.gaussian == 0


def test_energy_against_rank_of_a_lora_ends_at_its_rank():
    found = whole(SQUARE, 0.01 * random(*SQUARE, seed=3), updates(SQUARE))
    energy = found.loras[0].update.energy
    assert energy.ranks == (1, 2, 3)
    assert energy.kept[-1] == pytest.approx(1.0, abs=1e-4)
    assert energy.gaussian[-1] == pytest.approx(1.0, abs=1e-4)
    assert found.drift.energy.ranks[-1] == 24


@pytest.mark.parametrize("size", [0.02, 0.3])
def test_gaussian_loras_are_like_their_null_whether_little_is_turned_or_much(size):
    loras = {}
    for at in range(24):
        factors = LowRank(random(24, 4, seed=20 + at), random(4, 24, seed=60 + at))
        loras[str(at)] = factors.scaled(size * float(weight(SQUARE).S.norm()) / factors.norm())
    found = [each.update for each in whole(SQUARE, 0.01 * random(*SQUARE, seed=13), loras).loras]

    def means(rows):
        return torch.tensor([tuple(row) for row in rows], dtype=torch.float64).mean(0)

    for figures in zip(*(each.windows for each in found), strict=True):
        aligned, chance = means((each.aligned.value, each.aligned.gaussian) for each in figures)
        assert float(aligned) == pytest.approx(float(chance), abs=0.08), figures[0].place
    for figures in ([each.rigidity for each in found], [each.largest for each in found]):
        own, chance = means((each.value, each.gaussian) for each in figures)
        assert float(own) == pytest.approx(float(chance), rel=0.15)
    turn, chance = (
        means(rows).mean() for rows in zip(*((f.rotation.measured, f.rotation.gaussian) for f in found), strict=True)
    )
    assert float(turn) == pytest.approx(float(chance), rel=0.15)
