"""A weight that is to be cut to a rank: references and sizes, no numbers.

A weight is what the output stores as one: where its naming fuses layers, they are cut together, and their factors
share one side.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from loraport.adapters.stored_weights import StoredWeight
from loraport.containers.references import TensorRef
from loraport.engine.job import SMALL_CHANGE, Job

if TYPE_CHECKING:
    from torch import Tensor

    from loraport.core.lowrank import LowRank
    from loraport.engine.reading import InputReader

EXACT = 1024
"""Up to this size an exact decomposition costs no more than an approximate one."""


class Matrix(ABC):
    """What is cut. Picklable; holds references only.

    Attributes:
        held: its tensors are kept in memory from hashing on, so that large ones are read once.
    """

    held: ClassVar[bool] = False

    @property
    @abstractmethod
    def rank(self) -> int:
        """At most."""

    @abstractmethod
    def refs(self) -> dict[str, TensorRef]:
        """Every tensor that it is made of, by its role."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What besides these tensors decides its numbers."""

    @abstractmethod
    def read(self, reader: "InputReader") -> "LowRank | Tensor":
        """The matrix in float32, as factors or as it is."""


@dataclass(frozen=True)
class WeightJob(Job):
    """Work on one weight.

    Attributes:
        weight: where its layers are.
        matrix: what is cut.
        shape: of the matrix.
        rank: that of the factors that are wanted; None for the singular values.
        peak_bytes: memory expected meanwhile.
    """

    weight: StoredWeight
    matrix: Matrix
    shape: tuple[int, int]
    rank: int | None
    peak_bytes: int

    @property
    def title(self) -> str:
        """The name of the weight."""
        return self.weight.name

    @property
    def refs(self) -> dict[str, TensorRef]:
        """Those of the matrix."""
        return self.matrix.refs()

    @property
    def cost(self) -> float:
        """Operations, roughly."""
        m, n = self.shape
        thin = min(self.matrix.rank, *self.shape)
        return 4.0 * (m + n) * thin * thin if self.rank is None or thin <= EXACT else 20.0 * m * n * self.rank


def peak_bytes(shape: tuple[int, int], whole: bool) -> int:
    """Memory that work on a weight takes at most.

    Args:
        shape: of it.
        whole: whether it is decomposed as a whole matrix, or by its factors.
    """
    m, n = shape
    return 4 * m * n * (6 if whole else 1) + (24 * min(m, n) ** 2 if whole else 0) + SMALL_CHANGE
