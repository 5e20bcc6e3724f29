"""A whole matrix."""

from loraport.adapters.kinds.diff import Diff
from loraport.adapters.loading.base import Parts, Stored, load, read_finite, stored
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank


@load.register(Diff)
def matrix(kind: Diff, parts: Parts, shape: tuple[int, int]) -> LowRank:
    """The matrix, with the identity of the smaller side as its other factor."""
    return LowRank.from_dense(read_float(parts["diff"]).reshape(shape))


@stored.register(Diff)
def matrix_as_stored(kind: Diff, parts: Parts, shape: tuple[int, int]) -> Stored:
    """The matrix bit for bit."""
    return read_finite(parts["diff"]).reshape(shape)
