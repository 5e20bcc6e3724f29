"""What an update looks like where there is nothing to see: a Gaussian one of the same norm, or the rounding of numbers.

A Gaussian matrix looks the same in every orthonormal basis, so it is drawn in the singular directions at once, and its
part outside of them as the triangular factor of such a matrix (Bartlett's decomposition): nothing of a layer's longer
side is drawn or multiplied.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from loraport.analysis.coordinates import Coordinates
from loraport.analysis.routing_maps import area, leading
from loraport.containers.dtypes import FORMATS
from loraport.core.basis import SpectralBasis
from loraport.core.operator import norm

_ROWS = 512  # of a weight, from which rounding is told
_DIRECTIONS = 128  # of the spectrum, from which it is told how it changes singular values


def gaussian(
    shape: tuple[int, int], size: float, like: Tensor, generator: Generator, *, rank: int | None = None
) -> Coordinates:
    """A Gaussian update in coordinates.

    Args:
        shape: (m, n) of the layer, m >= n.
        size: its Frobenius norm, exactly.
        like: a tensor of the dtype and device that are wanted.
        generator: on the CPU.
        rank: that of a product of two Gaussian factors; None for a full matrix.
    """
    m, n = shape
    r = n if rank is None else min(rank, n)
    inner = torch.randn(n, r, generator=generator, dtype=like.dtype)
    outer = triangular(m - n, r, generator, like.dtype)
    if rank is not None:
        A = torch.randn(r, n, generator=generator, dtype=like.dtype)
        inner, outer = inner @ A, outer @ A
    factor = (norm(inner) ** 2 + norm(outer) ** 2) ** 0.5
    factor = size / factor if factor > 0 else 0.0
    return Coordinates(inner.mul_(factor).to(like), outer.mul_(factor).to(like))


def triangular(
    rows: int, columns: int, generator: Generator, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "q columns"]:
    """A matrix with the Gram matrix of a Gaussian one of this shape, in min(rows, columns) rows."""
    if rows <= columns:
        return torch.randn(rows, columns, generator=generator, dtype=dtype)
    R = torch.randn(columns, columns, generator=generator, dtype=dtype).triu_(1)
    freedom = rows - torch.arange(columns, dtype=torch.float64)
    # The square root of a gamma variate, by Wilson and Hilferty's cube, is within 1e-3 of it from ten degrees on; for
    # fewer it is summed up from squares.
    few = freedom < 10
    cube = (
        1
        - 2 / (9 * freedom)
        + torch.randn(columns, generator=generator, dtype=torch.float64) * (2 / (9 * freedom)).sqrt()
    )
    squares = torch.randn(columns, 10, generator=generator, dtype=torch.float64).square()
    summed = (squares * (torch.arange(10) < freedom[:, None])).sum(1)
    R.diagonal().copy_(torch.where(few, summed, freedom * cube.clamp_min(0) ** 3).sqrt())
    return R


def energies_of_factors(shape: tuple[int, int], rank: int, generator: Generator) -> Float[Tensor, " r"]:
    """Squared singular values of a product of two Gaussian factors of this rank, the largest first."""
    m, n = shape
    core = triangular(m, rank, generator) @ triangular(n, rank, generator).T
    return torch.linalg.svdvals(core).square()


def rounding_noise(
    W: Float[Tensor, "m n"], dtype: str | None, size: float, generator: Generator
) -> Float[Tensor, "m n"]:
    """The rounding of two weights like this one.

    Each number is off by up to half of the spacing of numbers where it stands, so that large numbers, and with them the
    large singular directions, bear more of it.

    Args:
        W: the weight.
        dtype: name of the number format that both are stored in, as safetensors spells it; None where they are
            quantised or stored in two, and the spacing is taken to follow the number however small it is.
        size: Frobenius norm of the difference that it makes.
        generator: on the CPU.
    """
    noise = torch.rand(W.shape, generator=generator).sub_(0.5).to(W).mul_(_spacing(W, dtype))
    return noise.mul_(size / max(norm(noise), 1e-300))


def _spacing(W: Float[Tensor, "m n"], dtype: str | None) -> Float[Tensor, "m n"]:
    """Distance between stored numbers where each number stands, but for a factor."""
    exponent = torch.frexp(W).exponent
    return torch.ones_like(W).ldexp_(
        exponent if dtype is None else exponent.clamp_min(FORMATS[dtype].least_exponent + 1)
    )


@dataclass(frozen=True)
class Rounding:
    """What the rounding of two weights does.

    Args:
        rigidity: change of the singular values, to first order, over the norm of these.
        concentration: of `routing_maps.concentration`.
        senders: norms of the columns of the head's routing matrix.
        receivers: norms of its rows.
    """

    rigidity: float
    concentration: float
    senders: Float[Tensor, " k"]
    receivers: Float[Tensor, " k"]


def rounding(basis: SpectralBasis, dtype: str, size: float, k: int, generator: Generator) -> Rounding:
    """The figures of `rounding_noise` of this weight, in the mean over the noise.

    What is rounded off one number has to do with no other, so that the mean square of an entry of the routing matrix is
    a sum over the weight's entries, each with the mean square of its noise. No noise is drawn, and of large layers some
    rows are enough: any figure is a mean over very many entries.

    Args:
        basis: of the weight, m >= n.
        dtype: name of the number format that both weights are stored in, as safetensors spells it.
        size: Frobenius norm of the difference that it makes.
        k: directions of the head.
        generator: on the CPU; chooses the rows.
    """
    m, p, h = len(basis.U), len(basis.S), leading(k)
    U = basis.U
    if m > _ROWS:
        U = U.index_select(0, torch.randperm(m, generator=generator)[:_ROWS].to(U.device))
    noise = _spacing((U * basis.S) @ basis.Vh, dtype).square_()
    noise.mul_(size**2 / max(float(noise.sum()), 1e-300))  # the rows stand for all
    left, right = U.square(), basis.Vh.square()
    left.mul_(len(U) / m / left.sum(0).clamp_min(1e-30))
    sent, received = right[:h].sum(0) @ noise.sum(0), left[:, :h].sum(1) @ noise.sum(1)
    head, inside = left[:, :k].sum(1), right[:k].sum(0)
    common = left[:, :h].sum(1) @ noise @ right[:h].sum(0)
    some = torch.arange(0, p, max(p // _DIRECTIONS, 1), device=U.device)
    along = float(((left[:, some].T @ noise) * right[some]).sum()) * p / len(some)
    return Rounding(
        rigidity=along**0.5 / max(norm(basis.S), 1e-300),
        concentration=float(sent + received - common) / max(size**2, 1e-300) / area((m, p), h),
        senders=(right[:k] @ (head @ noise)).sqrt(),
        receivers=(left[:, :k].T @ (noise @ inside)).sqrt(),
    )
