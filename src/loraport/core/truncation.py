"""The best low-rank approximation of an operator, without forming it.

The right singular vectors are sought in a block Krylov space: start from the columns that are likely to matter
(the LoRA's own, and a few random ones), multiply by M and M^T, keep everything that was seen, and take the best
rank-r approximation within it (Rayleigh-Ritz). Flat spectra take more blocks than steep ones; the loop looks at
the energy captured and stops when what is still missing is estimated below 4e-4 of it.

High ranks, and spectra so flat that the space would grow too large, take the leading eigenvectors of M^T M instead.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operator import Operator, sent, wide
from loraport.core.operators import DenseOperator, Routed
from loraport.core.thin_svd import eigenvectors, thin_svd
from loraport.errors import NumericalError

_EXTRA = 8  # random columns beside the hint, and columns beyond the rank: the usual oversampling of randomised SVDs
_BLOCK = 48  # columns a step, unless the hint has more. A column costs the same from 32 on (1536 x 1536, one core:
# 1.4 ms for 32, 1.9 for 48, 2.8 for 64, but 1.0 for 16), and narrow blocks find more with as many products
_BLOCKS = 8  # steps that there is room for at first
_MISSING = 4e-4  # share of the energy that may still be missing, by extrapolation; 1e-3 is promised
_AHEAD = 4  # steps that an accelerator takes before anybody looks whether they were needed
_DENSE = 1 / 4  # ranks beyond this share of min(m, n) take an exact SVD at once,
_SPACE = 2 / 3  # and so does any rank whose Krylov space would grow beyond this one, since it then costs as much
# From this min(m, n) on the eigenvectors of M^T M are found sooner than those of M, for ranks beyond these shares of it
# also sooner than a Krylov space that holds them, and up to the last share products with them cost less than an SVD.
_BY_GRAM, _SQUARE, _RECTANGULAR, _EXACT = 512, 1 / 8, 1 / 16, 1 / 2
_SCALES = (1e-12, 1e12)  # norms whose squares, and what is left of them, are well inside float32


@dataclass(frozen=True)
class Truncation:
    """A low-rank approximation of a matrix M.

    Args:
        update: balanced factors.
        energy_kept: share of ||M||^2 that they hold.
        rank: their number of columns.
    """

    update: LowRank
    energy_kept: float
    rank: int


def truncated_svd(
    op: Operator,
    *,
    rank: int | str | None = None,
    energy: float | None = None,
    start: LowRank | None = None,
    seed: int = 0,
    name: str = "update",
) -> Truncation:
    """Best low-rank approximation of an operator M (m x n), with balanced factors.

    Args:
        op: the operator M.
        rank: number of directions, clamped to min(m, n), or "full" for min(m, n).
        energy: instead of a rank, the share of ||M||^2 to keep; the smallest rank that does is taken.
        start: an update whose row space is likely to overlap the answer; only saves time.
        seed: of the random columns. Same operator, same seed, same machine: same bytes.
        name: layer name for messages.

    Returns:
        An update with at least 99.9 % of the energy that the best approximation of that rank has. `energy_kept`
        is exact for the update returned. Full rank, `energy` and thin factors use an exact SVD. Zero gives zeros.

    Raises:
        ValueError: neither or both of rank and energy, or out of range.
        NumericalError: M holds NaN or infinity.
    """
    m, n = op.shape
    count = _count(rank, energy, min(m, n))
    if isinstance(op, Routed):
        hint = op.project(start) if op.near is None and start is not None else op.near
        core = truncated_svd(op.core, rank=count, energy=energy, start=hint, seed=seed, name=name)
        return Truncation(op.lift(core.update), core.energy_kept, core.rank)
    total = op.norm() ** 2
    if not total < float("inf"):
        raise NumericalError(
            "the new update holds NaN or infinity",
            where=name,
            fix="leave the layer out with --drop, or reuse it unchanged, using --layers with a pattern for the others",
        )
    if total == 0.0 or count == 0:
        zero = LowRank.zeros(m, n, count or 0, dtype=op.dtype, device=op.device)
        return Truncation(zero, 1.0 if total == 0.0 else 0.0, zero.rank)
    if isinstance(op, LowRank):
        if op.thin:
            return _cut(*op.svd(), count, energy, total)
        op = DenseOperator(op.dense(), op.norm())
    if m < n:  # the Krylov space lives on the shorter side
        hint = None if start is None else start.T
        flipped = truncated_svd(op.T, rank=count, energy=energy, start=hint, seed=seed, name=name)
        return Truncation(flipped.update.T, flipped.energy_kept, flipped.rank)
    found = None
    by_gram = count is not None and n >= _BY_GRAM and count <= _EXACT * n and _SCALES[0] < total**0.5 < _SCALES[1]
    most = _DENSE if not by_gram else _SQUARE if m == n else _RECTANGULAR
    if count is not None and count <= most * n:
        found = _krylov(op, count, start, seed, total)
    if found is None and count is not None and by_gram:
        found = _leading(op, count, total)
    if found is not None:
        return found
    svd = thin_svd(op.dense(), name=name)
    return _cut(svd.U, svd.S, svd.Vh, count, energy, total)


def _count(rank: int | str | None, energy: float | None, full: int) -> int | None:
    if (rank is None) == (energy is None):
        raise ValueError("give either a rank or a share of the energy")
    if energy is not None:
        if not 0.0 < energy <= 1.0:
            raise ValueError(f"a share of the energy lies in (0, 1], not {energy}")
        return None
    if rank == "full":
        return full
    if not isinstance(rank, int) or rank < 0:
        raise ValueError(f"a rank is a number or 'full', not {rank!r}")
    return min(rank, full)


def _cut(U: Tensor, S: Tensor, Vh: Tensor, count: int | None, energy: float | None, total: float) -> Truncation:
    held = wide(S.cpu()).square().cumsum(0)
    if count is None:
        assert energy is not None
        count = min(int((held < energy * float(held[-1]) * (1 - 1e-12)).sum()) + 1, S.numel())
    update = LowRank.from_svd(U[:, :count], S[:count], Vh[:count]).padded(count)
    kept = float(held[min(count, S.numel()) - 1]) / total
    return Truncation(update, min(kept, 1.0), count)


def _krylov(op: Operator, rank: int, start: LowRank | None, seed: int, total: float) -> Truncation | None:
    """None if the space grew so large that another way is cheaper."""
    n = op.shape[1]
    if start is not None and not start.thin:
        start = None  # its leading directions would cost more than they save
    generator = torch.Generator().manual_seed(seed)
    width = min(rank + _EXTRA, max(_BLOCK, 0 if start is None else start.rank + _EXTRA))
    room = torch.empty(n, _BLOCKS * width, dtype=op.dtype, device=op.device)
    V = room[:, :0]  # orthonormal: the space
    image = _first_block(n, rank, width, start, generator, V)
    inside = V.T @ image
    H = torch.empty(0, 0, dtype=op.dtype)  # V^T M^T M V, whose leading eigenvalues are energies captured
    energies: list[float] = []
    unseen: list[Tensor] = []  # columns of H that were computed since the last look
    while V.shape[1] + width <= _SPACE * n:
        block = _new_directions(image, V, inside)
        image = op.gram(block)
        if V.shape[1] + width > room.shape[1]:
            room = torch.cat([V, torch.empty_like(room)], dim=1)
        V = room[:, : V.shape[1] + width]
        V[:, -width:] = block
        inside = V.T @ image
        unseen.append(inside)
        if len(unseen) == _looks(op) or V.shape[1] + width > _SPACE * n:
            for columns in _on_cpu(unseen):
                H = _bordered(H, columns)
                if len(H) < rank:
                    continue
                both = torch.linalg.eigh(H) if _likely_last(energies, total) else None
                values = torch.linalg.eigvalsh(H) if both is None else both.eigenvalues
                energies.append(float(wide(values[-rank:]).sum()))
                if _missing(energies, total) <= _MISSING * energies[-1]:
                    vectors = (both or torch.linalg.eigh(H)).eigenvectors[:, -(rank + _EXTRA) :]
                    return _ritz(op, V[:, : len(H)] @ sent(vectors, V), rank, total)
            unseen.clear()
        size = torch.linalg.vector_norm(image, dim=0).clamp_min(torch.finfo(op.dtype).tiny)
        image, inside = image / size, inside / size
    return None


def _looks(op: Operator) -> int:
    """Steps from one look at the energies to the next. A look makes an accelerator wait; a step too many is cheap."""
    return 1 if op.device.type == "cpu" else _AHEAD


def _on_cpu(parts: list[Tensor]) -> list[Tensor]:
    """Copies on the CPU, in one piece."""
    if parts[0].device.type == "cpu":
        return list(parts)
    flat = torch.cat([part.reshape(-1) for part in parts]).cpu()
    pieces = flat.split([part.numel() for part in parts])
    return [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def _first_block(
    n: int, rank: int, width: int, start: LowRank | None, generator: torch.Generator, like: Tensor
) -> Float[Tensor, "n c"]:
    known = (
        torch.empty(n, 0, dtype=torch.float32)
        if start is None
        else (start if start.rank <= rank else start.truncated(rank)).A.T
    )
    random = torch.randn(n, width - known.shape[1], generator=generator, dtype=known.dtype)
    return torch.cat([known.to(like.device, like.dtype), sent(random.to(like.dtype), like)], dim=1)


def _new_directions(
    X: Float[Tensor, "n c"], V: Float[Tensor, "n d"], inside: Float[Tensor, "d c"]
) -> Float[Tensor, "n c"]:
    """Orthonormal columns that span what X adds to V, `inside` being V^T X. Twice, since once leaves the rounding of
    large parts of V."""
    for again in (False, True):
        X = torch.addmm(X, V, V.T @ X if again else inside, alpha=-1.0)
        X = torch.linalg.qr(X).Q if X.device.type != "mps" else torch.linalg.qr(X.cpu()).Q.to(X.device)
    return X


def _bordered(H: Float[Tensor, "d d"], columns: Float[Tensor, "e c"]) -> Float[Tensor, "e e"]:
    """H with further columns, and the rows that mirror them."""
    return torch.cat([torch.cat([H, columns[: len(H)]], dim=1), columns.T], dim=0)


def _missing(energies: list[float], total: float) -> float:
    """Estimate of the energy still to come: a geometric series through the last two gains, at most what is left."""
    left = max(total - energies[-1], 0.0)
    if len(energies) < 3:
        return left
    gain, before = (max(energies[-i] - energies[-i - 1], 0.0) for i in (1, 2))
    ratio = min(gain / before, 0.9) if before > 0 else 0.0
    return min(left, gain * ratio / (1 - ratio))


def _likely_last(energies: list[float], total: float) -> bool:
    """Whether the next look is likely to be the last one, whose eigenvectors are wanted beside the energy."""
    if len(energies) < 3:
        return False
    gain, before = (energies[-i] - energies[-i - 1] for i in (1, 2))
    coming = energies[-1] + (gain * min(gain / before, 0.9) if before > 0 else 0.0)
    return _missing([*energies, coming], total) <= _MISSING * coming


def _leading(op: Operator, rank: int, total: float) -> Truncation | None:
    """By the leading eigenvectors of M^T M. None if they were not found."""
    G = op.gram_matrix()
    V = eigenvectors(G.cpu() if G.device.type == "mps" else G)
    return None if V is None else _ritz(op, V[:, : rank + _EXTRA].to(G.device).contiguous(), rank, total)


def _ritz(op: Operator, Y: Tensor, rank: int, total: float) -> Truncation:
    """The best rank-r part of M Y Y^T, Y orthonormal with a few columns more than r, as balanced factors.

    The search went by M^T M, in which small singular values drown in float32; M Y still has their digits.
    """
    W = op.apply(Y)
    exact = wide(W)
    values, vectors = torch.linalg.eigh((exact.T @ exact).cpu())
    values, vectors = values[-rank:].flip(0).clamp_min(0), vectors[:, -rank:].flip(1)
    root = values.sqrt().sqrt()
    inverse = torch.where(root > root[0] * 1e-8, 1 / root, 0.0)
    left, right = (sent(x.to(Y.dtype), Y) for x in (vectors * inverse, vectors * root))
    kept = min(float(values.sum()) / total, 1.0)
    return Truncation(LowRank(W @ left, (Y @ right).T.contiguous()), kept, rank)
