"""What changes in a checkpoint, and how it is stored then.

A weight keeps its format where that is fine enough for the sum. One in 8 bits or fewer is rounded anew, where there is
an encoder for it, or becomes plain numbers of 16 or 32 bits; either only on request.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraport.adapters.passthrough import Passthrough
from loraport.adapters.update import LayerUpdate
from loraport.containers.arrange import Put
from loraport.containers.codecs.belongings import belongings, plain_key
from loraport.containers.dtypes import FORMATS, PlainFormat, name_of
from loraport.containers.layout import Layout
from loraport.containers.references import TensorRef, can_encode
from loraport.containers.stored import list_stored
from loraport.errors import UnsupportedError
from loraport.files import read_text
from loraport.models.placement import Rows
from loraport.wording import count, size

if TYPE_CHECKING:
    from loraport.core.lowrank import LowRank

_EXACT_BITS = 8  # of bfloat16's significand; coarser formats are written on request only
_MAX_BYTES = 2**24  # of a configuration


class Change(ABC):
    """Something else than a LoRA's update that is added to a weight. Its `repr` names all that decides it."""

    @abstractmethod
    def load(self) -> "LowRank":
        """What is added, in float32: as factors, or a whole matrix as such."""


@dataclass(frozen=True)
class Term:
    """What one LoRA, or a change of another kind, adds to a part of a stored tensor.

    Attributes:
        name: of the layer or parameter.
        rows: of the stored tensor; None for all of it.
        what: the update or the change, scale inside.
        factor: how often it is added.
    """

    name: str
    rows: Rows | None
    what: LayerUpdate | Passthrough | Change
    factor: float


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the checkpoint that changes.

    Attributes:
        ref: as it lies in the file, whole.
        terms: what is added to it.
        plain: the number format that it is written in, of one that becomes plain numbers; None of one that is stored
            as it was.
    """

    ref: TensorRef
    terms: tuple[Term, ...]
    plain: str | None = None

    @property
    def puts(self) -> tuple[Put, ...]:
        """The stored tensors that are written for it: its own, and its companions where it keeps them."""
        own = replace(self.ref, companions=())
        if self.plain is not None:
            return (Put(own, plain_key(own), self.plain, self.ref.shape),)
        return (Put.in_place(own), *(Put.in_place(companion) for _, companion in self.ref.companions))

    @property
    def coarse(self) -> bool:
        """Whether it is stored in 8 bits or fewer."""
        return (FORMATS[self.ref.dtype].significand_bits or 0) < _EXACT_BITS if self.ref.dtype in FORMATS else True


def as_stored(
    tensors: Sequence[MergedTensor], requantize: bool, dequantize: PlainFormat | None
) -> tuple[MergedTensor, ...]:
    """The same with the format that each is written in.

    Args:
        tensors: what changes.
        requantize: round weights of fp8 anew.
        dequantize: the format of the other quantised ones.

    Raises:
        UnsupportedError: for some that is not said; or nothing would read the file.
    """
    refused, found = [], []
    for tensor in tensors:
        if can_encode(tensor.ref) and (requantize or not tensor.coarse):
            found.append(tensor)
        elif dequantize is not None:
            _refuse_scales_elsewhere(tensor.ref)
            found.append(replace(tensor, plain=name_of(dequantize)))
        else:
            refused.append(tensor)
    if refused:
        raise _undecided(refused, len(tensors))
    return tuple(found)


def gone_with(tensors: Sequence[MergedTensor], layout: Layout) -> tuple[TensorRef, ...]:
    """The stored tensors that are of no use when these are written. Raises FileError."""
    plain = [tensor.ref for tensor in tensors if tensor.plain is not None]
    return tuple(belongings(plain, stored_beside(plain[0], layout))) if plain else ()


def stored_beside(ref: TensorRef, layout: Layout) -> dict[str, TensorRef]:
    """All tensors of the model that one is of, as they lie in its files. Raises FileError."""
    return {key: it for file in layout.files for key, it in list_stored(file).groups.get(ref.nest, {}).items()}


def said_of_the_whole(layout: Layout) -> str | None:
    """A sentence where a file beside the weights says how the model is quantised. Raises FileError."""
    for file in layout.beside:
        if file.name == "config.json" and '"quantization_config"' in read_text(file, "configuration", most=_MAX_BYTES):
            return (
                f"{file.name} says how the model is quantised (quantization_config) and is copied unchanged: a "
                "program that relies on it may take layers that are now plain numbers for quantised ones"
            )
    return None


def _undecided(refused: Sequence[MergedTensor], changing: int) -> UnsupportedError:
    first, is_or_are = refused[0].ref, "is" if len(refused) == 1 else "are"
    larger = sum(put.nbytes - it.ref.nbytes for it in refused for put in replace(it, plain="BF16").puts)
    fix = f"add --dequantize bfloat16, which writes them as plain numbers ({size(larger)} more)"
    if all(can_encode(tensor.ref) for tensor in refused):
        fix += ", or --requantize, which rounds them again and reports the loss"
    return UnsupportedError(
        f"{len(refused)} of {count(changing, 'tensor')} that change {is_or_are} quantised ({first.stored_as})",
        where=str(first.file),
        values=first.key,
        fix=f"{fix}; or merge into the bf16 copy",
    )


def _refuse_scales_elsewhere(ref: TensorRef) -> None:
    """Raise UnsupportedError for Tencent's HunyuanVideo, whose loader turns every layer into fp8 again."""
    if ref.container == "torch" and any(companion.file != ref.file for _, companion in ref.companions):
        raise UnsupportedError(
            "the scales are in a separate file, and the loader of such files assumes that every layer is fp8",
            where=str(ref.file),
            values=ref.key,
            fix="use --requantize instead of --dequantize, or merge into the bf16 copy",
        )
