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
