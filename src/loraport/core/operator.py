"""What it takes to be a matrix here, and sums over matrices that lose no digits and do not overflow."""

import contextlib
import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor


class Operator(ABC):
    """An m x n matrix that can be applied to thin matrices from both sides.

    A base class and no protocol: checking a value against a protocol evaluates its properties, and `T` makes
    another operator each time.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the products are computed."""

    @property
    @abstractmethod
    def T(self) -> "Operator":
        """The transpose; nothing is copied."""

    @abstractmethod
    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """M X."""

    @abstractmethod
    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """M^T Y; a left product Y^T M is its transpose."""

    def gram(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """M^T M X; an operator may know a cheaper way than two products."""
        return self.apply_t(self.apply(X))

    def gram_matrix(self) -> Float[Tensor, "n n"]:
        """M^T M; only its lower triangle counts."""
        return self.gram(torch.eye(self.shape[1], dtype=self.dtype, device=self.device))

    @abstractmethod
    def norm(self) -> float:
        """Frobenius norm, accumulated in float64."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "m n"]:
        """The matrix itself."""


def thin_product(M: Float[Tensor, "m n"], X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
    """M X for a thin X: BLAS is up to twice as quick where the large matrix is not the one that lies transposed."""
    lies_transposed = M.stride(1) > M.stride(0)
    return (X.T @ M.T).T.contiguous() if lies_transposed and 8 * X.shape[1] < M.shape[1] else M @ X


def lies_turned(M: Tensor) -> bool:
    """Whether the numbers of a matrix lie column after column, and not row after row."""
    if M.dim() != 2:
        return False
    m, n = M.shape
    return M.stride() == (1, m) != (n, 1)


def sent(x: Tensor, like: Tensor) -> Tensor:
    """x, from the CPU, on the device of another tensor, and nobody waits for CUDA.

    From ordinary memory CUDA would wait for its stream before it copies more than 64 KB, and where it reads that memory
    by itself it may read it later, when it is gone; torch keeps pinned memory until it has been read. MPS has no such
    memory, and is waited for.
    """
    if like.is_cuda:
        with contextlib.suppress(RuntimeError):  # the system gives no more memory of that kind
            x = x.pin_memory()
    return x.to(like.device, non_blocking=like.device.type != "mps")


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """x on another device. From pinned memory, which is not copied first, nobody waits for CUDA. Only on the way there
    is it asked whether memory is pinned: to answer, torch takes hold of a card, and fails where that one is full."""
    on_its_way = torch.device(device).type == "cuda" and x.device.type == "cpu"
    return x.to(device, non_blocking=on_its_way and x.is_pinned())


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float64, on the CPU where its device has none (MPS). For small matrices and vectors."""
    return (x.cpu() if x.device.type == "mps" else x).double()


_STRIP = {"cpu": 1 << 18}  # numbers worked on together: so many stay in the processor's cache,
_STRIP_ON_A_DEVICE = 1 << 24  # and on a device a pass over so many takes much longer than asking for it


def strips(X: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "a n"], ...]:
    """Views of its rows, for what takes as much memory again as it is given: so many at a time depends on X alone."""
    return X.split(max(_STRIP.get(X.device.type, _STRIP_ON_A_DEVICE) // max(X.shape[1], 1), 1))


_COLUMNS = 32  # whose norms are taken together: five times as fast on a tall matrix as all at once


def column_norms(M: Float[Tensor, "m n"]) -> Float[Tensor, " n"]:
    """Euclidean norms of the columns. On the CPU in strips that lie side by side in its cache; the same bits."""
    if M.device.type != "cpu" or M.shape[1] < 2 * _COLUMNS:
        return torch.linalg.vector_norm(M, dim=0)
    strips = M.tensor_split(M.shape[1] // _COLUMNS, dim=1)
    return torch.cat([torch.linalg.vector_norm(strip.contiguous(), dim=0) for strip in strips])


_SAFE = (1e-12, 1e18)  # norms whose squares, and those of a millionth part of them, are well inside float32


def norm(matrix: Float[Tensor, "..."]) -> float:
    """Frobenius norm, accumulated in float64 row by row, right also where squares leave the range of float32."""
    rows = matrix if matrix.dim() == 2 else matrix.reshape(1, -1)
    size = _norm(rows)
    if _SAFE[0] < size < _SAFE[1] or rows.numel() == 0:
        return size
    largest = float(rows.abs().max())
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return _norm(rows / largest) * largest


def _norm(rows: Float[Tensor, "m n"]) -> float:
    return math.sqrt(float(wide(torch.linalg.vector_norm(rows, dim=1)).square().sum()))


def square_sum(matrix: Float[Tensor, "m n"]) -> float:
    """Sum of squares, accumulated in float64."""
    return norm(matrix) ** 2


def dot(x: Float[Tensor, "m n"], y: Float[Tensor, "m n"]) -> float:
    """Sum of products, accumulated in float64 row by row."""
    return float(wide((x * y).sum(dim=1)).sum())
