"""A whole matrix: the update of a layer written out, as extraction from two checkpoints leaves it."""

from collections.abc import Mapping

from loraport.adapters.kinds.base import AdapterKind, Claim, Piece, matrix_shape, register
from loraport.errors import MismatchError


@register
class Diff(AdapterKind):
    """One m x n matrix, added to the weight as it is: it has no alpha."""

    name = "diff"
    title = "whole matrix"
    essential = ("diff",)
    linear = ("diff",)
    rowwise = ("diff",)

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """The matrix. See `AdapterKind.claim`."""
        if "diff" not in parts:
            return None
        ref = parts["diff"].ref
        shape = matrix_shape(ref)
        if shape is None:
            raise MismatchError(f"{ref.key} is not a matrix", where=str(ref.file), values=str(list(ref.shape)))
        why = "a whole matrix, which has no scale"
        return Claim({"diff": ref}, shape, min(shape), None, self.essential, why, fixed=True)

    def factored(self, shape: tuple[int, int], rank: int) -> bool:
        """Never: its rank is whatever the matrix has."""
        return False

    def size(self, shape: tuple[int, int], rank: int) -> str:
        """No rank is known."""
        return "whole matrix"
