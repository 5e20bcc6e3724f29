"""Several pairs of factors on one weight."""

import torch

from loraport.adapters.kinds.split import SplitFactors
from loraport.adapters.loading.base import Parts, load
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank


@load.register(SplitFactors)
def pairs(kind: SplitFactors, parts: Parts, shape: tuple[int, int]) -> LowRank:
    """Blocks on a diagonal."""
    refs = list(parts.values())
    downs, ups = ([read_float(ref).flatten(1) for ref in refs[start::2]] for start in (0, 1))
    return LowRank(torch.block_diag(*ups), torch.cat(downs))
