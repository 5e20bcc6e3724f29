"""Matrices like those of a Wan layer, with a chosen spectrum and without an SVD."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

SPECTRUM = ((0.0, 8.0), (0.033, 2.0), (0.26, 1.56), (0.293, 1.48), (0.911, 0.11), (0.944, 0.07), (1.0, 0.04))
"""Singular value at a share of the way through the spectrum; straight lines in between."""

UPDATE_REL = 0.012
"""Frobenius norm of a LoRA's update, as a share of the weight's."""


def singular_values(p: int, generator: torch.Generator) -> Tensor:
    """p values along `SPECTRUM`, descending, their gaps irregular by a random part."""
    at = torch.linspace(0, 1, p, dtype=torch.float64)
    values = torch.empty_like(at)
    for (left, high), (right, low) in itertools.pairwise(SPECTRUM):
        inside = (at >= left) & (at <= right)
        values[inside] = high + (low - high) * (at[inside] - left) / (right - left)
    jitter = 1 + 0.002 * torch.randn(p, generator=generator, dtype=torch.float64)
    return (values * jitter).sort(descending=True).values.float()


@dataclass(frozen=True)
class Rotation:
    """A random-looking orthogonal n x n matrix, applied in n log n."""

    order: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def random(cls, n: int, generator: torch.Generator) -> "Rotation":
        """Random permutation and signs around a Hartley transform."""
        signs = [torch.randint(0, 2, (n,), generator=generator).float() * 2 - 1 for _ in range(2)]
        return cls(torch.randperm(n, generator=generator), *signs)

    def to(self, device: torch.device | str) -> "Rotation":
        """The same on another device."""
        return Rotation(self.order.to(device), self.before.to(device), self.after.to(device))

    def rows(self, X: Tensor) -> Tensor:
        """X Q, in place, a few rows at a time."""
        step = max(1, 4_000_000 // X.shape[1])
        for part in X.split(step):
            part.copy_(_hartley(part[:, self.order] * self.before).mul_(self.after))
        return X

    def columns(self, X: Tensor) -> Tensor:
        """Q^T X, in place, a few columns at a time."""
        step = max(1, 4_000_000 // X.shape[0])
        for part in X.split(step, dim=1):
            part.copy_(_hartley(part.T[:, self.order] * self.before).mul_(self.after).T)
        return X


def _hartley(X: Tensor) -> Tensor:
    """Orthonormal discrete Hartley transform of every row."""
    n = X.shape[1]
    spectrum = torch.fft.rfft(X, dim=1, norm="ortho")
    half = spectrum.shape[1]
    result = torch.empty_like(X)
    result[:, :half] = spectrum.real - spectrum.imag
    result[:, half:] = (spectrum.real + spectrum.imag)[:, 1 : n - half + 1].flip(1)
    return result


def weight_pair(
    m: int, n: int, drift: float, generator: torch.Generator, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A source weight and the same weight after a drift of `drift` times its Frobenius norm (float32).

    In the singular basis the drift is Gaussian with a profile: entries of head rows and columns are up to
    about three times as large as the rest. The random numbers are those of the CPU; a device is for the transforms.
    """
    p = min(m, n)
    S = singular_values(p, generator)
    left, right = (Rotation.random(side, generator).to(device) for side in (m, n))
    core = torch.randn(m, n, generator=generator).to(device)
    core *= (_profile(m, p)[:, None] + _profile(n, p)).to(device)
    core *= drift * float(S.norm()) / float(torch.linalg.vector_norm(core))
    source = torch.zeros(m, n, device=device)
    source.diagonal().copy_(S)
    for matrix in (source, core):
        right.rows(left.columns(matrix))
    return source, core.add_(source)


def _profile(length: int, p: int) -> Tensor:
    return 0.5 + 2.0 * torch.exp(-torch.arange(length) / (0.03 * p))


def lora_factors(m: int, n: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """B (m x rank) and A (rank x n) whose product has `UPDATE_REL` of a weight's norm and a falling spectrum."""
    norm = float(singular_values(min(m, n), torch.Generator().manual_seed(0)).norm())
    fall = torch.logspace(0, -1, rank)
    A = torch.randn(rank, n, generator=generator) / math.sqrt(n)
    B = torch.randn(m, rank, generator=generator) / math.sqrt(m) * (fall * UPDATE_REL * norm / fall.norm())
    return B, A
