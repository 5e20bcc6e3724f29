"""The coordinate system of a layer: the singular vectors of its source weight."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.operator import moved, wide


@dataclass(frozen=True)
class SpectralBasis:
    """W_source = U[:, :p] diag(S) Vh[:p], p = min(m, n); column i of U *receives*, row j of Vh *sends*.

    Thin as a rule (a = b = p); `core.thin_svd` makes it. A *completed* basis has a = m and b = n: the missing
    directions of the longer side, in an arbitrary orthonormal basis of the null space.

    Args:
        U: output directions, orthonormal columns.
        S: singular values, descending.
        Vh: input directions, orthonormal rows.
        driver: which algorithm found it.
    """

    U: Float[Tensor, "m a"]
    S: Float[Tensor, " p"]
    Vh: Float[Tensor, "b n"]
    driver: str = "given"

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def T(self) -> "SpectralBasis":
        """The basis of the transposed weight, all views."""
        return SpectralBasis(self.Vh.T, self.S, self.U.T, self.driver)

    def to(self, device: torch.device | str) -> "SpectralBasis":
        """The same basis on another device."""
        U, S, Vh = (moved(part, device) for part in (self.U, self.S, self.Vh))
        return SpectralBasis(U, S, Vh, self.driver)

    def head(self, energy: float) -> int:
        """Smallest k with sum_{i<k} S_i^2 >= energy * sum S_i^2 (Eq. 3 of the paper)."""
        return max(directions_holding(self.S, energy), 1)

    def completed(self) -> "SpectralBasis":
        """The same basis with the null space of the longer side filled in (by QR)."""
        m, n = self.shape
        U = self.U if self.U.shape[1] == m else _completed(self.U)
        Vh = self.Vh if self.Vh.shape[0] == n else _completed(self.Vh.T).T
        return SpectralBasis(U, self.S, Vh, self.driver)


def directions_holding(S: Float[Tensor, " p"], share: float) -> int:
    """The least number of singular values, in descending order, that hold a share of their squared sum; 0 of zeros."""
    held = wide(S.cpu()).square().cumsum(0)
    if not held.numel() or float(held[-1]) == 0.0:
        return 0
    return min(int((held < share * held[-1]).sum()) + 1, S.numel())


def _completed(U: Float[Tensor, "m p"]) -> Float[Tensor, "m m"]:
    Q = torch.linalg.qr(U.cpu() if U.device.type == "mps" else U, mode="complete").Q.to(U.device)
    return torch.cat([U, Q[:, U.shape[1] :]], dim=1)
