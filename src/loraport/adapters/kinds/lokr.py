"""LoKr (LyCORIS, PEFT): the Kronecker product of two small matrices, each whole or as two factors.

kron(B1 A1, B2 A2) = kron(B1, B2) kron(A1, A2), so the update is exactly of rank rank(w1) rank(w2), and its factors
are Kronecker products of the small factors. A whole w1 or w2 counts with its smaller side.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from loraport.adapters.kinds.base import AdapterKind, Claim, Piece, check_rank, matrix_shape, register
from loraport.containers.tensors import TensorRef, read_float
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError, UnsupportedError

HALVES = ("lokr_w1", "lokr_w2")


@register
class Lokr(AdapterKind):
    """lokr_w1 (a x b) and lokr_w2 (c x d), or in the place of either `_a` (a x r) and `_b` (r x b): ac x bd.

    Alpha is divided by the rank of what is factored, that of w2 if both are. With two whole matrices it counts for
    nothing, as in LyCORIS and ComfyUI; only a configuration of PEFT says otherwise.
    """

    name = "lokr"
    title = "LoKr"
    essential = tuple(f"{half}{end}" for half in HALVES for end in ("", "_a", "_b"))
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {part: (f".{part}", f".{part}.<adapter>") for part in essential}
    linear = ("lokr_w1", "lokr_w1_a")

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """Both matrices, each whole or factored. See `AdapterKind.claim`."""
        used = tuple(part for part in self.essential if part in parts)
        if not used:
            return None
        sides, ranks, divisor = [], [], None
        for half in HALVES:
            whole, factors = half in parts, [part for part in (f"{half}_a", f"{half}_b") if part in parts]
            if whole and factors:
                raise UnsupportedError(
                    f"{module} has {half} both whole and in factors",
                    where=str(parts[half].ref.file),
                    values=f"{parts[half].key} and {parts[factors[0]].key}",
                    fix="leave one of them out with --drop",
                )
            if not whole and len(factors) < 2:
                return next((f"{half}{end}" for end in ("_a", "_b") if factors and f"{half}{end}" not in factors), half)
            shapes = [_shape(module, parts[part]) for part in ([half] if whole else factors)]
            shape = (shapes[0][0], shapes[-1][1])
            if not whole:
                if shapes[0][1] != shapes[1][0]:
                    raise _misfit(module, [parts[part] for part in factors])
                check_rank(module, shapes[1][0], shape, parts[factors[1]])
                divisor = shapes[1][0]  # of w2 if both are factored
            sides.append(shape)
            ranks.append(min(*shape) if whole else min(shapes[1][0], *shape))
        (a, b), (c, d) = sides
        why = "" if divisor is not None else "a LoKr of two whole matrices, whose alpha counts for nothing"
        return Claim({part: parts[part].ref for part in used}, (a * c, b * d), ranks[0] * ranks[1], divisor, used, why)

    def load(self, parts: Mapping[str, TensorRef], shape: tuple[int, int]) -> LowRank:
        """Kronecker products of the factors of w1 and w2. See `AdapterKind.load`."""
        w1, w2 = (_half(parts, half) for half in HALVES)
        return LowRank(torch.kron(w1.B, w2.B), torch.kron(w1.A, w2.A))

    def stored(self, parts: Mapping[str, TensorRef], shape: tuple[int, int]) -> tuple[Tensor, Tensor] | Tensor:
        """Multiplied out in float32. See `AdapterKind.stored`."""
        w1, w2 = (_half(parts, half) for half in HALVES)
        if not self.factored(shape, w1.rank * w2.rank):
            return torch.kron(w1.dense(), w2.dense())
        return torch.kron(w1.B, w2.B), torch.kron(w1.A, w2.A)


def _half(parts: Mapping[str, TensorRef], half: str) -> LowRank:
    if half in parts:
        return LowRank.from_dense(_matrix(parts[half]))
    up, down = _matrix(parts[f"{half}_a"]), _matrix(parts[f"{half}_b"])
    if down.shape[0] > min(up.shape[0], down.shape[1]):
        return LowRank.from_dense(up @ down)
    return LowRank(up, down)


def _matrix(ref: TensorRef) -> Tensor:
    return read_float(ref).reshape(ref.shape[0], -1)


def _shape(module: str, piece: Piece) -> tuple[int, int]:
    shape = matrix_shape(piece.ref)
    if shape is None or 0 in shape:
        raise _misfit(module, [piece])
    return shape


def _misfit(module: str, pieces: list[Piece]) -> MismatchError:
    return MismatchError(
        f"the factors of {module} do not fit each other",
        where=str(pieces[0].ref.file),
        values=", ".join(f"{piece.key} {list(piece.ref.shape)}" for piece in pieces),
        fix="the file is damaged; use another copy",
    )
