"""The seam behind which a kind of adapter lies: what it is given, and what it must say.

A kind claims the keys of one module, names the tensors in them by role, and gives the update they stand for.
It knows no scale: alpha, a configuration and a strength are the same for all kinds (`scale.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, TypeVar

from loraport.containers.references import TensorRef, all_zero
from loraport.errors import MismatchError
from loraport.models.keymap import Resolved
from loraport.models.placement import Rows, take_ref


@dataclass(frozen=True)
class Piece:
    """One key of a LoRA file: which part of which module it is.

    Args:
        key: the raw key.
        ref: where its tensor lies.
        part: what the end of the key says, e.g. "down", "alpha", "diff_b", "lokr_w1".
        style: the suffix style of plain factors, None for other parts.
        adapter: the adapter's name inside the suffix, None where there is none.
        at: the module, with prefix and spelling.
    """

    key: str
    ref: TensorRef
    part: str
    style: str | None
    adapter: str | None
    at: Resolved


@dataclass(frozen=True)
class Claim:
    """The update of one module, as a kind understands its keys.

    Args:
        parts: role -> tensor. The roles of different kinds differ, so that roles and tensors name a result.
        shape: (m, n) of the update; None for a side that the parts do not tell.
        rank: largest rank the update can have, at most what its factors hold; None for the smaller side.
        divisor: what alpha is divided by; None for an update that has no scale.
        used: the parts (see `Piece.part`) that it is made of.
        unscaled: why there is no scale, for people; "" where there is one.
        fixed: not even a scale stated by hand applies.
        settings: numbers for `loading.change`.
        kernel: the shape of the weight, where it is a convolution's and the parts tell it; `shape` has its matrix.
    """

    parts: Mapping[str, TensorRef]
    shape: tuple[int | None, int | None]
    rank: int | None
    divisor: int | None
    used: tuple[str, ...]
    unscaled: str = ""
    fixed: bool = False
    settings: Mapping[str, float] = field(default_factory=dict)
    kernel: tuple[int, ...] | None = None


class AdapterKind(ABC):
    """One kind of adapter, marked with `register`. Stateless; one file each.

    Attributes:
        name: in `LayerUpdate.kind`.
        title: for people.
        endings: part -> the ends of keys that spell it. Plain factors have theirs in grammar.yaml.
        essential: the parts of which any one says that the module has an update of this kind.
        optional: further parts that belong to it and mean nothing by themselves.
        shared: parts that the file has once, for all modules of this kind.
        linear: the parts of which each module has exactly one, and which the update is proportional to.
        rowwise: the roles whose tensors have a row for every row of the update; the update of some rows of a weight is
            that of the same rows of these. See `narrow`.
        plain: two factors lie in the file as such, and are kept so however large their rank.
        scale_unsaid: its files leave their scale to a configuration that does not go with them, and it is not 1.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    essential: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    linear: ClassVar[tuple[str, ...]]
    rowwise: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[bool] = False
    scale_unsaid: ClassVar[bool] = False

    @abstractmethod
    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """Understand the keys of one linear layer.

        Args:
            module: canonical path, for messages.
            parts: part -> its key, all keys of the module.

        Returns:
            The claim; the name of the part that is missing where only some are there; None where none is.

        Raises:
            MismatchError: parts that do not fit each other.
            UnsupportedError: a variant of the kind that is recognised and refused.
        """

    def is_zero(self, parts: Mapping[str, TensorRef]) -> bool:
        """Whether the update is known to be zero from its parts alone: whether one of them is, as it is a product.

        Raises NumericalError where one that is looked at holds NaN or infinity.
        """
        return any(all_zero(ref) for ref in reversed(list(parts.values())))

    def narrow(self, parts: Mapping[str, TensorRef], rows: Rows) -> dict[str, TensorRef] | None:
        """The parts of the update of some rows of the weight, exactly; for layers that are fused in the file.

        Args:
            parts: role -> tensor, of the whole update.
            rows: ranges of its rows.

        Returns:
            Role -> tensor, or None where these rows cannot be taken by themselves.
        """
        if not self.rowwise:
            return None
        return {role: take_ref(ref, rows) if role in self.rowwise else ref for role, ref in parts.items()}

    def rank_of(self, parts: Mapping[str, TensorRef], rank: int) -> int:
        """The largest rank of an update of which `narrow` gave the parts, that of the whole being `rank`."""
        return rank

    def factored(self, shape: tuple[int, int], rank: int) -> bool:
        """Whether the update is worth keeping as two factors of that rank, rather than as a whole matrix."""
        m, n = shape
        return self.plain or rank <= SMALL_RANK or rank * (m + n) <= m * n

    def size(self, shape: tuple[int, int], rank: int) -> str:
        """Rank or whatever else says how much is in it, for people."""
        if self.plain:
            return str(rank)
        return f"{rank} ({self.title})" if self.factored(shape, rank) else f"whole matrix ({self.title})"


class OnSource(AdapterKind):
    """A kind whose update is a function of the weight that the adapter was trained on: W' - W, with W' made of W.

    Attributes:
        scale_inside: the scale is a part of that function (`settings["scale"]`), and no factor on its result.
    """

    linear: ClassVar[tuple[str, ...]] = ()
    scale_inside: ClassVar[bool] = False

    def bias(self, parts: Mapping[str, TensorRef], settings: Mapping[str, float]) -> TensorRef | None:
        """A vector that the bias of the layer is multiplied with; None where the bias stays as it is."""
        return None

    def check_kernel(self, module: str, piece: Piece) -> None:
        """Raise UnsupportedError where an update is not understood because its layer is a convolution.

        Args:
            module: canonical path of the layer.
            piece: the part that makes the update one of this kind.
        """

    def is_zero(self, parts: Mapping[str, TensorRef]) -> bool:
        """Not known without the weight."""
        return False

    def factored(self, shape: tuple[int, int], rank: int) -> bool:
        """Never: the update is of full rank."""
        return False


LARGEST_RANK = 4096  # of any factors, on however small a layer
KINDS: dict[str, AdapterKind] = {}
"""Every kind by name, filled by `register`. Read it through `loraport.adapters.kinds`, which loads them all."""

K = TypeVar("K", bound=AdapterKind)


def register(kind: type[K]) -> type[K]:
    """Mark a class as a kind of adapter."""
    KINDS[kind.name] = kind()
    return kind


SMALL_RANK = 128  # two factors of this rank are no burden, however small the layer


def check_rank(module: str, rank: int, shape: tuple[int, int], piece: Piece) -> None:
    """Raise MismatchError for factors of a rank that no layer of that shape can use, before they fill the memory."""
    if rank > max(4 * max(shape), LARGEST_RANK):
        raise MismatchError(
            f"the factors of {module} have a rank far larger than the layer",
            where=str(piece.ref.file),
            values=f"rank {rank:,} for {shape[0]} x {shape[1]}, by {piece.key} {list(piece.ref.shape)}",
            fix="the file is damaged or not a LoRA; if it is only this layer, leave it out with --drop",
        )


def misfit(what: str, pieces: Sequence[Piece], fix: str = "the file is damaged; use another copy") -> MismatchError:
    """The error for parts of one file that do not fit each other, or their layer.

    Args:
        what: the sentence.
        pieces: the parts, whose shapes are shown.
        fix: what to do.
    """
    values = ", ".join(f"{piece.key} {list(piece.ref.shape)}" for piece in pieces)
    return MismatchError(what, where=str(pieces[0].ref.file), values=values, fix=fix)


def matrix_shape(ref: TensorRef) -> tuple[int, int] | None:
    """Rows and columns of a matrix; of a convolution's kernel as a matrix, with all but the rows as columns."""
    return None if len(ref.shape) < 2 else (ref.shape[0], prod(ref.shape[1:]))
