"""The difference of two weights."""

from jaxtyping import Float32
from torch import Tensor

from loraport.adapters.kinds.set_weight import SetWeight
from loraport.adapters.loading.base import Numbers, Parts, change, finite_update
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank


@change.register(SetWeight)
def difference(kind: SetWeight, parts: Parts, weight: Float32[Tensor, "m *rest"], settings: Numbers) -> LowRank:
    """The difference of the two."""
    own = weight.reshape(len(weight), -1)
    return finite_update(read_float(parts["set_weight"]).reshape(own.shape) - own, parts["set_weight"])
