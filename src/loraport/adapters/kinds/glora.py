"""GLoRA (LyCORIS): W' = W + s (W a1 a2 + b1 b2), of rank 2 r exactly: [W a1, b1] [a2; b2].

Early LyCORIS called the factors the other way round, W a2 a1 + b2 b1. Which it is shows in their shapes; where it does
not, as in ComfyUI, the early way is meant.
"""

from collections.abc import Mapping
from typing import ClassVar

from loraport.adapters.kinds.base import (
    AdapterKind,
    Claim,
    OnSource,
    Piece,
    check_rank,
    matrix_shape,
    misfit,
    register,
)
from loraport.containers.references import TensorRef, all_zero

ROLES = ("glora_a_up", "glora_a_down", "glora_b_up", "glora_b_down")


@register
class Glora(OnSource):
    """a1 (inputs x r), a2 (r x inputs), b1 (m x r), b2 (r x n); alpha is divided by r.

    Of a linear layer the inputs are n; the kernel of a convolution is taken input by input.
    """

    name = "glora"
    title = "GLoRA"
    essential = ("a1", "a2", "b1", "b2")
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {part: (f".{part}.weight",) for part in essential}
    rowwise = ("glora_b_up",)

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """All four factors, fitting each other. See `AdapterKind.claim`."""
        missing = [part for part in self.essential if part not in parts]
        if missing:
            return missing[0] if len(missing) < 4 else None
        ways = (("a2", "a1", "b2", "b1"), self.essential)
        fitting = [order for order in ways if _fits([parts[part] for part in order])]
        if not fitting:
            named = [parts[part] for part in self.essential]
            raise misfit(f"the four factors of {module} do not fit each other", named)
        # Turned round, the sides pass for the rank.
        order = min(fitting, key=lambda order: parts[order[3]].ref.shape[0])
        refs = [parts[part].ref for part in order]
        up, down = matrix_shape(refs[2]), matrix_shape(refs[3])
        assert up is not None
        assert down is not None
        shape, rank = (up[0], down[1]), down[0]
        check_rank(module, rank, shape, parts[order[3]])
        return Claim(dict(zip(ROLES, refs, strict=True)), shape, min(2 * rank, *shape), rank, self.essential)

    def is_zero(self, parts: Mapping[str, TensorRef]) -> bool:
        """Whether both products are. See `AdapterKind.is_zero`."""
        zero = {role: all_zero(parts[role]) for role in ROLES}
        return (zero[ROLES[0]] or zero[ROLES[1]]) and (zero[ROLES[2]] or zero[ROLES[3]])

    def factored(self, shape: tuple[int, int], rank: int) -> bool:
        """Where that is smaller than the matrix. See `AdapterKind.factored`."""
        return AdapterKind.factored(self, shape, rank)


def _fits(pieces: list[Piece]) -> bool:
    """Whether four factors, in the order of `ROLES`, are of one rank and one layer."""
    sides = [matrix_shape(piece.ref) for piece in pieces]
    if any(side is None or 0 in side for side in sides):
        return False
    a_up, a_down, b_up, b_down = (side for side in sides if side is not None)
    one_rank = a_up[1] == a_down[0] == b_up[1] == b_down[0]
    return one_rank and a_up[0] == a_down[1] and b_down[1] % a_up[0] == 0
