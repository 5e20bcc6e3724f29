"""Thin SVD of a weight, at the price of one symmetric eigenproblem."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.operator import column_norms, sent, strips, wide
from loraport.errors import NumericalError

# Columns of W V that belong to singular values of a share s of the largest miss orthogonality by about eps / s^2 in
# float32. Measured on 512 x 512 with graded spectra: 2e-6 at s = 0.12, 2e-5 at 0.06, 1.5e-4 at 0.03, 3e-3 at 0.01.
_WINDOW = 0.06  # below this share the columns are found again from a Gram matrix of their own: keeps to 2e-5
_CLEAN = 0.12  # below this one they are made orthonormal among each other: one product gains the last digit,
_FAINT = 0.03  # and below this one to all others as well, whose errors they have from the first Gram matrix
_SMALL = 128  # the library takes 1.4 ms there and the eigenproblem 2.0; at 192 it is 5.4 against 2.1
_BUDGET = 2.0  # eigenproblems of full size spent on tails; the library's SVD takes 1.8 to 2.7 of them
_TOLERANCE = 100.0  # units in the last place on random probes; sound bases show at most 24, a lost direction 5e5
_NOISE = 2e-6  # of the largest eigenvalue of a Gram matrix, in float32: what is less is rounding.
_MANY, _LOST = 0.05, 0.02  # mean over largest square, and a share of squares that are less: errors are 1e-6 of the sum
_PROBES = 16  # a product with 4 to 16 columns takes the same time, with 32 half as much again
_SCALES = (1e-12, 1e12)  # of the largest singular value: outside, squares of the small ones leave float32

_LIBRARY = {"cpu": ("gesdd",), "cuda": ("gesvdj", "gesvd")}
"""The library's drivers by device, the quicker one first. LAPACK's gesdd is torch's only one on the CPU."""


def thin_svd(W: Float[Tensor, "m n"], *, name: str = "matrix") -> SpectralBasis:
    """Thin SVD of W, orthonormal to about 1e-5 and exact to about 1e-5 ||W|| in float32.

    Drivers, in this order; each is checked before it is believed: `gram` (float32 only: eigenvectors of W^T W, then a
    repair of the tail), the library's (`gesdd` on the CPU; `gesvdj`, then `gesvd` on CUDA), and the last of these in
    float64. Where the libraries of a device can do nothing with it the work is done on the CPU and moved back, as it
    always is for MPS, where torch has no SVD.

    Args:
        W: the matrix.
        name: of its layer, for messages.

    Returns:
        The basis, with the name of the driver that answered.

    Raises:
        NumericalError: W holds NaN or infinity, or no driver could do it. Names `name`.
    """
    if W.device.type == "mps":
        return thin_svd(W.cpu(), name=name).to(W.device)
    if not bool(torch.linalg.vector_norm(W).isfinite()) and not bool(torch.isfinite(W).all()):
        raise NumericalError(
            "a weight holds NaN or infinity", where=name, values=f"{int((~torch.isfinite(W)).sum())} entries"
        )
    if W.shape[0] < W.shape[1]:
        return thin_svd(W.T, name=name).T
    for driver, attempt in _attempts(W.device.type):
        parts = attempt(W)
        if parts is not None and _holds(W, *parts):
            return SpectralBasis(*parts, driver)
    if W.device.type != "cpu":
        found = thin_svd(W.cpu(), name=name)
        return replace(found, driver=f"{found.driver} on the CPU").to(W.device)
    raise NumericalError(
        "no driver could compute the singular value decomposition of a weight",
        where=name,
        values=f"{W.shape[0]} x {W.shape[1]}, largest entry {float(W.abs().max()):.3g}",
    )


def singular_values(W: Float[Tensor, "m n"], *, name: str = "matrix") -> Float[Tensor, " p"]:
    """Singular values of W, descending, on the CPU: exact to about 1e-6 of what all their squares add up to.

    Of many values of like size, in float32, the eigenvalues of W^T W alone are enough, which take half of the time of
    `thin_svd` and a third of LAPACK's own way on a small matrix, and less on large ones.

    Args:
        W: the matrix.
        name: of its layer, for messages.

    Raises:
        NumericalError: as `thin_svd`.
    """
    if W.shape[0] < W.shape[1]:
        return singular_values(W.T, name=name)
    if W.dtype == torch.float32 and W.shape[1] >= _SMALL and W.device.type != "mps":
        squares = _eigenvalues(gram(W))
        if squares is not None and _told_apart(squares):
            return squares.where(squares > _NOISE * float(squares[0]), 0.0).sqrt_()
    return thin_svd(W, name=name).S.cpu()


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


def rounding(S: Float[Tensor, " p"]) -> float:
    """By how much `thin_svd` typically misses a singular value, in the units of S: a few eps S_0.

    Measured by what hangs on it: decisions of CASA in this basis and in one of float64 differ about as often as they
    change under errors of this size.
    """
    return 4 * torch.finfo(S.dtype).eps * float(S[0])


def _attempts(device: str) -> Iterator[tuple[str, Callable[[Tensor], _Parts | None]]]:
    library = _LIBRARY.get(device, _LIBRARY["cpu"])
    yield "gram", _by_gram
    for driver in library:
        yield driver, partial(_by_library, driver=driver)
    yield f"{library[-1]}-float64", partial(_by_library_in_float64, driver=library[-1])


def _by_library(W: Tensor, driver: str) -> _Parts | None:
    try:  # torch takes the name of a driver on CUDA only
        U, S, Vh = torch.linalg.svd(W, full_matrices=False, driver=driver if W.is_cuda else None)
    except RuntimeError as error:
        if not _gives_up(error):
            raise
        return None
    return U, S, Vh


_LIBRARIES = ("cusolver", "magma", "hipsolver", "rocsolver", "keyword argument `driver=`")


def _gives_up(error: RuntimeError) -> bool:
    """Whether a decomposition was not found, or its library does not take such a matrix or is not there on a device;
    not whether it has no room."""
    said = str(error).lower()
    if isinstance(error, torch.cuda.OutOfMemoryError) or any(
        no in said for no in ("alloc", "not_initialized", "create(")
    ):
        return False
    gone = isinstance(error, torch.linalg.LinAlgError | NotImplementedError)
    return gone or any(name in said for name in _LIBRARIES)


def _by_library_in_float64(W: Tensor, driver: str) -> _Parts | None:
    parts = _by_library(W.double(), driver)
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
    V = eigenvectors(gram(W))
    if V is None:
        return None
    M = W @ V
    S = column_norms(M)
    seen = S.cpu()  # once, since every look at a value makes an accelerator wait
    if not _SCALES[0] < float(seen[0]) < _SCALES[1]:
        return None
    noise = torch.finfo(S.dtype).eps * n**0.5  # what W V has in place of a singular value of zero
    top, spent = 0, 0.0
    while True:
        tail = int((_WINDOW * seen[top] <= seen).sum())
        if n - tail < 2 or tail <= top or float(seen[tail]) < noise * float(seen[0]):
            break
        spent += ((n - tail) / n) ** 3
        if spent > _BUDGET:
            return None
        rotation = eigenvectors(gram(M[:, tail:]))
        if rotation is None:
            return None
        _turn(M[:, tail:], rotation)
        _turn(V[:, tail:], rotation)
        S[tail:] = column_norms(M[:, tail:])
        seen, top = S.cpu(), tail
    U = M.div_(S.clamp_min(torch.finfo(S.dtype).tiny))
    first, faint = (int((share * seen[0] <= seen).sum()) for share in (_CLEAN, _FAINT))
    if first < n:
        _orthonormalise(U[:, first:], U[:, :first], faint - first)
    order = seen.argsort(descending=True, stable=True)
    if not torch.equal(order, torch.arange(n)):
        order = sent(order, S)
        S = S[order]
        for strip in (*strips(U), *strips(V)):
            strip.copy_(strip.index_select(1, order))
    return U, S, V.T


def eigenvectors(G: Float[Tensor, "n n"]) -> Float[Tensor, "n n"] | None:
    """Eigenvectors of a symmetric matrix given by its lower triangle, largest eigenvalue first; None if not found."""
    try:
        return torch.linalg.eigh(G, UPLO="L").eigenvectors.flip(1)
    except RuntimeError as error:
        if not _gives_up(error):
            raise
        return None


def _eigenvalues(G: Float[Tensor, "n n"]) -> Float[Tensor, " n"] | None:
    """Those of a symmetric matrix given by its lower triangle, on the CPU, the largest first; None if not found."""
    try:
        return torch.linalg.eigvalsh(G, UPLO="L").flip(0).cpu()
    except RuntimeError as error:
        if not _gives_up(error):
            raise
        return None


def _told_apart(squares: Float[Tensor, " n"]) -> bool:
    """Whether the errors of eigenvalues of a Gram matrix in float32, some eps of the largest, count for nothing."""
    largest, many = float(squares[0]), len(squares)
    if not _SCALES[0] < max(largest, 0.0) ** 0.5 < _SCALES[1]:
        return False
    lost = int((squares <= _NOISE * largest).sum())
    return lost <= _LOST * many and float(wide(squares).sum()) > _MANY * many * largest


def _turn(X: Tensor, rotation: Tensor) -> None:
    """X @ rotation in the place of X."""
    for strip in (X,) if X.device.type == "cpu" else strips(X):  # the CPU's library may round otherwise in strips
        strip.copy_(strip @ rotation)


def _orthonormalise(columns: Tensor, others: Tensor, faint: int) -> None:
    """Put orthonormal columns in their place; from column `faint` on they are made orthogonal to `others` first.

    More than one round is needed only if columns are nearly dependent, as those of singular value zero are.
    """
    X = columns.contiguous() if columns.device.type == "cpu" else columns  # a device has not the memory for a copy
    for _ in range(3):
        part = X[:, faint:]
        part.addmm_(others, others.T @ part, alpha=-1.0)
        part.div_(column_norms(part).clamp_min_(torch.finfo(X.dtype).tiny))
        L, failed = torch.linalg.cholesky_ex(gram(X))
        if float(torch.where(failed == 0, L.diagonal().min(), 0.0)) > 0.5:
            if X.device.type == "cpu":
                columns.copy_(torch.linalg.solve_triangular(L.T, X, upper=True, left=False))
                return
            for strip in strips(X):
                strip.copy_(torch.linalg.solve_triangular(L.T, strip, upper=True, left=False))
            break
        X, R = torch.linalg.qr(X)
        X = X * torch.where(R.diagonal() < 0, -1.0, 1.0)
    if X is not columns:
        columns.copy_(X)


def _holds(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> bool:
    """Whether U and V are orthonormal and U S Vh is W, seen on a few fixed probes: thin products only."""
    if not S.numel():
        return True
    generator = torch.Generator().manual_seed(0)
    probes = sent(torch.randn(S.numel() + W.shape[1], _PROBES, generator=generator, dtype=W.dtype), W)
    x, y = probes[: S.numel()], probes[S.numel() :]
    scale = S[:1].clamp_min(torch.finfo(S.dtype).tiny)
    errors = (
        U.T @ (U @ x) - x,
        Vh @ (Vh.T @ x) - x,
        (U @ (S[:, None] * (Vh @ y)) - W @ y) / scale,
    )
    limit = _TOLERANCE * torch.finfo(W.dtype).eps * max(W.shape[1], 1) ** 0.5
    return all(bool(error < limit) for error in torch.stack([error.abs().max() for error in errors]).cpu())
