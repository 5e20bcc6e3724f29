"""Several pairs of factors on one weight."""

from collections.abc import Mapping

import torch

from loraport.adapters.kinds.split import SplitFactors
from loraport.adapters.loading.base import load
from loraport.containers.tensors import TensorRef, read_float
from loraport.core.lowrank import LowRank


@load.register(SplitFactors)
def pairs(kind: SplitFactors, parts: Mapping[str, TensorRef], shape: tuple[int, int]) -> LowRank:
    """Blocks on a diagonal."""
    refs = list(parts.values())
    downs, ups = ([read_float(ref).flatten(1) for ref in refs[start::2]] for start in (0, 1))
    return LowRank(torch.block_diag(*ups), torch.cat(downs))
