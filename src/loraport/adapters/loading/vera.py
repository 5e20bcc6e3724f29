"""Vectors on a pair of matrices that all layers share."""

from loraport.adapters.kinds.vera import Vera
from loraport.adapters.loading.base import Parts, load
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError


@load.register(Vera)
def vectors(kind: Vera, parts: Parts, shape: tuple[int, int]) -> LowRank:
    """Two factors of rank r."""
    b, d, A, B = (read_float(parts[part]) for part in (*kind.essential, *kind.shared))
    if A.shape[1] < shape[1]:
        raise MismatchError(
            "the matrices of the file are smaller than the layer",
            where=str(parts["vera_A"].file),
            values=f"{parts['vera_A'].key} {list(A.shape)} for {shape[1]} inputs",
        )
    return LowRank(b.reshape(-1, 1) * B[: shape[0]], d.reshape(-1, 1) * A[:, : shape[1]])
