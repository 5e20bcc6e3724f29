"""Thin SVD of a weight, at the price of one symmetric eigenproblem."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import NumericalError

ALGORITHM = "thin-svd-3"
"""Part of the cache key of a basis: raised whenever `thin_svd` would return other numbers than before."""

_SMALL = 128  # below this the library's SVD is as fast
_WINDOW = 0.06  # singular values smaller than this share of the largest lose their digits in the Gram matrix
_CLEAN = 0.12  # below this share the columns of U are made orthonormal among each other,
_FAINT = 0.03  # and below this one to all others as well
_BUDGET = 2.0  # eigenproblems of full size spent on tails before the library's SVD is the cheaper way
_TOLERANCE = 100.0  # units of the last place of an orthonormal basis, on random probes
_PROBES = 16  # as fast as fewer: thinner products run at a fraction of the speed
_SCALES = (1e-12, 1e12)  # outside, squares leave the range of float32


@dataclass(frozen=True)
class ThinSVD:
    """U (m x p), S (p, descending), Vh (p x n), p = min(m, n), and the name of the driver that answered."""

    U: Float[Tensor, "m p"]
    S: Float[Tensor, " p"]
    Vh: Float[Tensor, "p n"]
    driver: str


def thin_svd(W: Float[Tensor, "m n"], *, name: str = "matrix") -> ThinSVD:
    """Thin SVD of W, orthonormal to about 1e-5 and exact to about 1e-5 ||W|| in float32.

    Drivers, in this order; each is checked before it is believed:
    `gram` (float32 only: eigenvectors of W^T W, then a repair of the tail), `gesdd`, `gesdd-float64`.
    MPS has no SVD worth the name: the work is done on the CPU and moved back.

    Raises:
        NumericalError: W holds NaN or infinity, or no driver could do it. Names `name`.
    """
    if W.device.type == "mps":
        svd = thin_svd(W.cpu(), name=name)
        return ThinSVD(svd.U.to(W.device), svd.S.to(W.device), svd.Vh.to(W.device), svd.driver)
    if not bool(torch.linalg.vector_norm(W).isfinite()) and not bool(torch.isfinite(W).all()):
        raise NumericalError(
            "a weight holds NaN or infinity", where=name, values=f"{int((~torch.isfinite(W)).sum())} entries"
        )
    if W.shape[0] < W.shape[1]:
        svd = thin_svd(W.T, name=name)
        return ThinSVD(svd.Vh.T, svd.S, svd.U.T, svd.driver)
    for driver, attempt in (("gram", _by_gram), ("gesdd", _by_library), ("gesdd-float64", _by_library_in_float64)):
        svd = attempt(W)
        if svd is not None and _holds(W, *svd):
            return ThinSVD(*svd, driver)
    raise NumericalError(
        "no driver found the singular value decomposition of a weight",
        where=name,
        values=f"{W.shape[0]} x {W.shape[1]}, largest entry {float(W.abs().max()):.3g}",
    )


def gram(W: Float[Tensor, "m n"], blocks: int = 4) -> Float[Tensor, "n n"]:
    """W^T W, only the blocks on and below the diagonal (the others are undefined): 5/8 of the product for 4 blocks."""
    n = W.shape[1]
    G = torch.empty(n, n, dtype=W.dtype, device=W.device)
    step = max(-(-n // blocks), 1)
    for low in range(0, n, step):
        high = min(low + step, n)
        G[low:, low:high] = W[:, low:].T @ W[:, low:high]
    return G


_Parts = tuple[Tensor, Tensor, Tensor]


def _by_library(W: Tensor) -> _Parts | None:
    try:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    except torch.linalg.LinAlgError:
        return None
    return U, S, Vh


def _by_library_in_float64(W: Tensor) -> _Parts | None:
    parts = _by_library(W.double())
    return None if parts is None else (parts[0].to(W.dtype), parts[1].to(W.dtype), parts[2].to(W.dtype))


def _by_gram(W: Tensor) -> _Parts | None:
    """W^T W = V S^2 V^T, then U S = W V. None where that is not worth while or cannot work.

    In float32 an eigenvector is known to eps S_0^2 only, so W V is not orthogonal among the small singular
    values. There the same is done again for the columns of W V concerned, whose own scale is smaller, until
    none is left; at the end the small columns are made orthonormal once more.
    """
    n = W.shape[1]
    if W.dtype != torch.float32 or n < _SMALL:
        return None
    V = _eigenvectors(gram(W))
    if V is None:
        return None
    M = W @ V
    S = torch.linalg.vector_norm(M, dim=0)
    if not _SCALES[0] < float(S[0]) < _SCALES[1]:
        return None
    noise = torch.finfo(S.dtype).eps * n**0.5  # what W V has in place of a singular value of zero
    top, spent = 0, 0.0
    while True:
        tail = int((_WINDOW * S[top] <= S).sum())
        if n - tail < 2 or tail <= top or float(S[tail]) < noise * float(S[0]):
            break
        spent += ((n - tail) / n) ** 3
        if spent > _BUDGET:
            return None
        rotation = _eigenvectors(gram(M[:, tail:]))
        if rotation is None:
            return None
        M[:, tail:] = M[:, tail:] @ rotation
        V[:, tail:] = V[:, tail:] @ rotation
        S[tail:] = torch.linalg.vector_norm(M[:, tail:], dim=0)
        top = tail
    U = M.div_(S.clamp_min(torch.finfo(S.dtype).tiny))
    first, faint = (int((share * S[0] <= S).sum()) for share in (_CLEAN, _FAINT))
    if first < n:
        U[:, first:] = _orthonormalised(U[:, first:], U[:, :first], faint - first)
    S, order = S.sort(descending=True, stable=True)
    if not torch.equal(order, torch.arange(n, device=order.device)):
        U, V = U[:, order], V[:, order]
    return U, S, V.T


def _eigenvectors(G: Tensor) -> Tensor | None:
    """Eigenvectors of a symmetric matrix given by its lower triangle, largest eigenvalue first."""
    try:
        return torch.linalg.eigh(G, UPLO="L").eigenvectors.flip(1)
    except torch.linalg.LinAlgError:
        return None


def _orthonormalised(X: Tensor, others: Tensor, faint: int) -> Tensor:
    """Orthonormal columns near those of X; from column `faint` on they are made orthogonal to `others` first.

    More than one round is needed only if columns are nearly dependent, as those of singular value zero are.
    """
    X = X.contiguous()
    for _ in range(3):
        part = X[:, faint:]
        part.addmm_(others, others.T @ part, alpha=-1.0)
        part.div_(torch.linalg.vector_norm(part, dim=0).clamp_min_(torch.finfo(X.dtype).tiny))
        L, failed = torch.linalg.cholesky_ex(gram(X))
        if int(failed) == 0 and float(L.diagonal().min()) > 0.5:
            return torch.linalg.solve_triangular(L.T, X, upper=True, left=False)
        X, R = torch.linalg.qr(X)
        X = X * torch.where(R.diagonal() < 0, -1.0, 1.0)
    return X


def _holds(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> bool:
    """Whether U and V are orthonormal and U S Vh is W, seen on a few fixed probes: thin products only."""
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(S.numel() + W.shape[1], _PROBES, generator=generator, dtype=W.dtype).to(W.device)
    x, y = probes[: S.numel()], probes[S.numel() :]
    scale = S[:1].clamp_min(torch.finfo(S.dtype).tiny)
    errors = (
        U.T @ (U @ x) - x,
        Vh @ (Vh.T @ x) - x,
        (U @ (S[:, None] * (Vh @ y)) - W @ y) / scale,
    )
    limit = _TOLERANCE * torch.finfo(W.dtype).eps * max(W.shape[1], 1) ** 0.5
    return all(bool(error.abs().max() < limit) for error in errors if error.numel())
