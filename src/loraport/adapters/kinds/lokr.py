"""LoKr (LyCORIS, PEFT): the Kronecker product of two small matrices, each whole or as two factors.

kron(B1 A1, B2 A2) = kron(B1, B2) kron(A1, A2), so the update is exactly of rank rank(w1) rank(w2), and its factors
are Kronecker products of the small factors. A whole w1 or w2 counts with its smaller side. On a convolution w2 has the
kernel, as a whole or as a Tucker core lokr_t2 with factors r x c and r x d.
"""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from loraport.adapters.kinds.base import AdapterKind, Claim, Piece, check_rank, matrix_shape, misfit, register
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
    optional = ("lokr_t2",)
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        part: (f".{part}", f".{part}.<adapter>") for part in (*essential, *optional)
    }
    linear = ("lokr_w1", "lokr_w1_a")

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """Both matrices, each whole or factored. See `AdapterKind.claim`."""
        used = tuple(part for part in self.endings if part in parts)
        if not any(part in parts for part in self.essential):
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
            if half == "lokr_w2" and "lokr_t2" in parts:
                shapes = _with_core(module, [parts[part] for part in (*([half] if whole else factors), "lokr_t2")])
            shape = (shapes[0][0], shapes[-1][1])
            if not whole:
                if shapes[0][1] != shapes[1][0]:
                    raise _misfit(module, [parts[part] for part in factors])
                check_rank(module, shapes[1][0], shape, parts[factors[1]])
                divisor = parts[factors[1]].ref.shape[0]  # of w2 if both are factored
            sides.append(shape)
            ranks.append(min(*shape) if whole else min(shapes[1][0], *shape))
        (a, b), (c, d) = sides
        why = "" if divisor is not None else "a LoKr of two whole matrices, whose alpha has no effect"
        roles = {part: parts[part].ref for part in used}
        kernel = None
        core = parts.get("lokr_t2", parts.get("lokr_w2"))
        if core is not None and len(core.ref.shape) > 2:
            kernel = (a * c, b * d // prod(core.ref.shape[2:]), *core.ref.shape[2:])
        return Claim(roles, (a * c, b * d), ranks[0] * ranks[1], divisor, used, why, kernel=kernel)


def _shape(module: str, piece: Piece) -> tuple[int, int]:
    shape = matrix_shape(piece.ref)
    if shape is None or 0 in shape:
        raise _misfit(module, [piece])
    return shape


def _with_core(module: str, pieces: list[Piece]) -> list[tuple[int, int]]:
    """The shapes of the two factors of w2 as matrices c x r and r x d, the core multiplied into the second."""
    shapes = [piece.ref.shape for piece in pieces]
    if len(shapes) != 3 or [len(shape) for shape in shapes[:2]] != [2, 2] or len(shapes[2]) < 3 or 0 in shapes[2]:
        raise _misfit(module, pieces)
    up, down, core = shapes
    if (up[0], down[0]) != core[:2]:
        raise _misfit(module, pieces)
    return [(up[1], up[0]), (core[0], down[1] * prod(core[2:]))]


def _misfit(module: str, pieces: list[Piece]) -> MismatchError:
    return misfit(f"the factors of {module} do not fit each other", pieces)
