"""LoHa (LyCORIS, PEFT): the elementwise product of two low-rank matrices, (w1_a w1_b) * (w2_a w2_b).

Of ranks r1 and r2 it is exactly a matrix of rank r1 r2: column (i, j) of its up factor is the elementwise product
of column i of w1_a and column j of w2_a, row (i, j) of its down factor that of row i of w1_b and row j of w2_b
(the row-wise Khatri-Rao product). Where r1 r2 is more than the smaller side, the matrix itself is smaller.
On a convolution either matrix may have a Tucker core; its factors are then r x m and r x inputs.
"""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from loraport.adapters.kinds.base import AdapterKind, Claim, Piece, check_rank, matrix_shape, misfit, register
from loraport.containers.references import TensorRef
from loraport.models.placement import Rows

CORES = ("hada_t1", "hada_t2")


@register
class Loha(AdapterKind):
    """hada_w1_a (m x r1), hada_w1_b (r1 x n), hada_w2_a (m x r2), hada_w2_b (r2 x n); alpha is divided by r1."""

    name = "loha"
    title = "LoHa"
    essential = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    optional = CORES
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        part: (f".{part}", f".{part}.<adapter>") for part in (*essential, *CORES)
    }
    linear = ("hada_w1_a",)
    rowwise = ("hada_w1_a", "hada_w2_a")

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """All four factors, fitting each other. See `AdapterKind.claim`."""
        missing = [part for part in self.essential if part not in parts]
        if missing:
            return missing[0] if len(missing) < 4 else None
        pieces = [parts[part] for part in self.essential]
        cores = [parts[part].ref.shape if part in parts else None for part in CORES]
        w1_a, w1_b = _sides(pieces[0].ref, pieces[1].ref, cores[0])
        w2_a, w2_b = _sides(pieces[2].ref, pieces[3].ref, cores[1])
        if (
            w1_a is None or w1_b is None or w2_a is None or w2_b is None
            or w1_a[1] != w1_b[0] or w2_a[1] != w2_b[0] or w1_a[0] != w2_a[0] or w1_b[1] != w2_b[1]
            or 0 in (*w1_a, *w1_b, *w2_a, *w2_b) or (cores[0] and cores[0][2:]) != (cores[1] and cores[1][2:])
        ):  # fmt: skip
            named = [parts[part] for part in self.endings if part in parts]
            raise misfit(f"the four factors of {module} do not fit each other", named)
        shape = (w1_a[0], w1_b[1])
        for piece, rank in ((pieces[1], w1_b[0]), (pieces[3], w2_b[0])):
            check_rank(module, rank, shape, piece)
        used = tuple(part for part in self.endings if part in parts)
        return Claim(
            {part: parts[part].ref for part in used},
            shape,
            min(w1_b[0] * w2_b[0], *shape),
            pieces[1].ref.shape[0],
            used,
            kernel=None if cores[0] is None else (shape[0], pieces[1].ref.shape[1], *cores[0][2:]),
        )

    def narrow(self, parts: Mapping[str, TensorRef], rows: Rows) -> dict[str, TensorRef] | None:
        """Rows of the up factors; not of those of a core, which lie the other way. See `AdapterKind.narrow`."""
        return None if CORES[0] in parts else super().narrow(parts, rows)


def _sides(
    up: TensorRef, down: TensorRef, core: tuple[int, ...] | None
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """The shapes of two factors as matrices m x r and r x n, the core multiplied into the second."""
    if core is None:
        return matrix_shape(up), matrix_shape(down)
    if len(core) < 3 or len(up.shape) != 2 or len(down.shape) != 2 or down.shape[0] != core[1]:
        return None, None
    return (up.shape[1], up.shape[0]), (core[0], down.shape[1] * prod(core[2:]))
