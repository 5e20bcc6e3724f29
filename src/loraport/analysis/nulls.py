"""What an update looks like where there is nothing to see: a Gaussian one of the same norm, or the rounding of numbers.

A Gaussian matrix looks the same in every orthonormal basis, so it is drawn in the singular directions at once, and its
part outside of them as the triangular factor of such a matrix (Bartlett's decomposition): nothing of a layer's longer
side is drawn or multiplied.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from loraport.analysis.coordinates import Coordinates
from loraport.containers.dtypes import FORMATS
from loraport.core.basis import SpectralBasis
from loraport.core.operator import norm


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
    inner = torch.randn(n, r, generator=generator, dtype=torch.float64)
    outer = triangular(m - n, r, generator)
    if rank is not None:
        A = torch.randn(r, n, generator=generator, dtype=torch.float64)
        inner, outer = inner @ A, outer @ A
    factor = (norm(inner) ** 2 + norm(outer) ** 2) ** 0.5
    factor = size / factor if factor > 0 else 0.0
    return Coordinates((inner * factor).to(like), (outer * factor).to(like))


def triangular(rows: int, columns: int, generator: Generator) -> Float[Tensor, "q columns"]:
    """A matrix with the Gram matrix of a Gaussian one of this shape, in min(rows, columns) rows."""
    if rows <= columns:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    R = torch.randn(columns, columns, generator=generator, dtype=torch.float64).triu_(1)
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
    noise = torch.rand(W.shape, generator=generator).sub_(0.5).to(W)
    exponent = torch.frexp(W).exponent
    noise.ldexp_(exponent if dtype is None else exponent.clamp_min(FORMATS[dtype].least_exponent + 1))
    return noise.mul_(size / max(norm(noise), 1e-300))


def rounding(
    basis: SpectralBasis, dtype: str, size: float, generator: Generator
) -> tuple[Float[Tensor, "p p"], Float[Tensor, " p"]]:
    """The routing matrix of `rounding_noise` of this weight, and of each sender the energy outside of U.

    Args:
        basis: of the weight, m >= n.
        dtype: name of the number format that both weights are stored in, as safetensors spells it.
        size: Frobenius norm of the difference that it makes.
        generator: on the CPU.
    """
    noise = rounding_noise((basis.U * basis.S) @ basis.Vh, dtype, size, generator)
    sent = noise @ basis.Vh.T
    C = basis.U.T @ sent
    whole, within = (torch.linalg.vector_norm(x, dim=0).square() for x in (sent, C))
    return C, (whole - within).clamp_min(0)
