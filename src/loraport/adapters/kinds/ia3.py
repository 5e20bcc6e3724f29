"""IA3: the rows or the inputs of the weight times a vector that was learned.

PEFT stores the factors themselves, as m x 1 or 1 x n, and multiplies a bias along with the rows. LyCORIS stores what
is added to 1, and a number that says whether the inputs are meant; it leaves the bias alone.
"""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from loraport.adapters.kinds.base import Claim, OnSource, Piece, register
from loraport.containers.references import TensorRef, read_number
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.placement import Rows, take_ref

FACTOR, ADDED = "ia3_factor", "ia3_added"  # roles: what is stored
OF_INPUTS = "_of_inputs"  # ends the role of a vector that is not for the rows


@register
class Ia3(OnSource):
    """ia3_l (PEFT), or ia3_weight with on_input (LyCORIS; the key of the first ends like that of a weight)."""

    name = "ia3"
    title = "IA3"
    essential = ("ia3_l", "on_input")
    optional = ("ia3_weight",)
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ia3_l": (".ia3_l", ".ia3_l.<adapter>"),
        "on_input": (".on_input",),
    }

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """The vector, and which side it is for. See `AdapterKind.claim`."""
        used: tuple[str, ...]
        if "ia3_l" in parts:
            piece, used = parts["ia3_l"], ("ia3_l",)
            along = _side(piece)
        elif "on_input" in parts:
            if "ia3_weight" not in parts:
                return "weight"
            piece, used = parts["ia3_weight"], ("ia3_weight", "on_input")
            ref = parts["on_input"].ref
            if prod(ref.shape) != 1 or max(piece.ref.shape, default=0) != prod(piece.ref.shape):
                raise misfit(piece.ref)
            along = int(bool(read_number(ref)))
        else:
            return None
        # How many inputs a convolution has, of which each has a kernel, does not say how wide its matrix is.
        count = None if along and len(piece.ref.shape) > 2 else prod(piece.ref.shape)
        role = (FACTOR if "ia3_l" in parts else ADDED) + (OF_INPUTS if along else "")
        why = "an IA3 vector, which has no scale"
        return Claim({role: piece.ref}, (None, count) if along else (count, None), None, None, used, why, fixed=True)

    def bias(self, parts: Mapping[str, TensorRef], settings: Mapping[str, float]) -> TensorRef | None:
        """What a bias is multiplied with; None where it stays. See `OnSource.bias`."""
        return parts.get(FACTOR)

    def narrow(self, parts: Mapping[str, TensorRef], rows: Rows) -> dict[str, TensorRef] | None:
        """The entries of these rows; all of them where they are for the inputs. See `AdapterKind.narrow`."""
        ((role, ref),) = parts.items()
        if role.endswith(OF_INPUTS):
            return {role: ref}
        return {role: take_ref(ref, rows)} if ref.shape[0] == prod(ref.shape) else None


def _side(piece: Piece) -> int:
    shape = piece.ref.shape
    if len(shape) > 2:
        raise UnsupportedError(
            "IA3 on a convolution is not supported: PEFT's vector does not say which side it is for",
            where=str(piece.ref.file),
            values=f"{piece.key} {list(shape)}",
            fix=f"leave the layer out with --drop {piece.at.module}",
        )
    if len(shape) != 2 or 1 not in shape:
        raise misfit(piece.ref)
    return 1 if shape[0] == 1 else 0


def misfit(ref: TensorRef) -> MismatchError:
    """The error for a vector that is of no side of the layer."""
    return MismatchError(
        "an IA3 vector has one entry for each row or each input",
        where=str(ref.file),
        values=f"{ref.key} {list(ref.shape)}",
        fix="the file is damaged; use another copy",
    )
