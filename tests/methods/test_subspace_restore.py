"""Undoing the drift on the LoRA's own directions, against projections written out."""

import pytest
import torch

from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.methods.base import LayerInputs
from loraport.methods.baselines.subspace_restore import SubspaceRestore, SubspaceRestoreParams


@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("side", ["inputs", "outputs", "both", "corner"])
def test_by_projections(side: str, padded: int) -> None:
    g = torch.Generator().manual_seed(0)

    def random(a: int, b: int) -> torch.Tensor:
        return torch.randn(a, b, generator=g, dtype=torch.float64)

    B, A, D = random(14, 3), random(3, 9), random(14, 9)
    update = LowRank(torch.cat([B, torch.zeros(14, padded).double()], 1), torch.cat([A, random(padded, 9)]))
    P, Q = B @ torch.linalg.pinv(B), torch.linalg.pinv(A) @ A
    part = {"inputs": D @ Q, "outputs": P @ D, "corner": P @ D @ Q, "both": D @ Q + P @ D - P @ D @ Q}[side]
    params = SubspaceRestoreParams(share=0.7, side=side)
    made = SubspaceRestore().transfer(LayerInputs("x", update, None, None, DenseOperator(D)), params)
    torch.testing.assert_close(made.update.dense(), B @ A - 0.7 * part)
    left = (D - 0.7 * part).norm() ** 2
    assert made.stats["drift_undone"] == pytest.approx(float(1 - left / D.norm() ** 2))
    assert made.update.rank <= 9 + padded


@pytest.mark.parametrize("shape", [(300, 280), (280, 300)], ids=str)
def test_an_update_of_full_rank_works_everywhere_and_is_not_taken_apart_in_float64(shape, monkeypatch):
    g, qr = torch.Generator().manual_seed(0), torch.linalg.qr
    update, drift = (torch.randn(shape, generator=g) for _ in range(2))
    monkeypatch.setattr(torch.linalg, "qr", lambda X: qr(X) if X.dtype == torch.float32 else pytest.fail("in float64"))
    inputs = LayerInputs("x", LowRank.from_dense(update), None, None, DenseOperator(drift))
    made = SubspaceRestore().transfer(inputs, SubspaceRestoreParams(share=0.5))
    torch.testing.assert_close(made.update.dense(), update - 0.5 * drift, atol=1e-4, rtol=0)
    assert made.update.rank == 280
    assert made.stats["drift_undone"] == pytest.approx(0.75, abs=1e-5)
