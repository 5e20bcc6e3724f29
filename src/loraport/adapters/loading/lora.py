"""Two factors as they are."""

from loraport.adapters.kinds.lora import Lora
from loraport.adapters.loading.base import Parts, Stored, load, read_finite, stored, unfold_core
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank


@load.register(Lora)
def factors(kind: Lora, parts: Parts, shape: tuple[int, int]) -> LowRank:
    """B and A as they are."""
    if "mid" in parts:
        down = unfold_core(read_float(parts["mid"]), read_float(parts["A"]).flatten(1))
        return LowRank(read_float(parts["B"]).flatten(1), down)
    rank = parts["A"].shape[0]
    return LowRank(read_float(parts["B"]).reshape(shape[0], rank), read_float(parts["A"]).reshape(rank, shape[1]))


@stored.register(Lora)
def factors_as_stored(kind: Lora, parts: Parts, shape: tuple[int, int]) -> Stored:
    """Both factors bit for bit; with a core multiplied out."""
    if "mid" in parts:
        update = load(kind, parts, shape)
        return update.B, update.A
    return read_finite(parts["B"]), read_finite(parts["A"])
