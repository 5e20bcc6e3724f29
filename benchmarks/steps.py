"""The steps of a transfer on one layer, each by itself: what the formulas say of it, and how it is done.

`cost.py` counts and times them on the CPU, `gpu.py` on a card.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.core.truncation import truncated_svd
from loraport.methods import cost as costs
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from loraport.methods.cost import Cost
from matrices import lora_factors, weight_pair
from synthetic import seeded

DRIFT = 0.05
ROUTING = ("routing of the drift", "Gram matrix of the rest")
CUT = ("truncated SVD",)


@dataclass(frozen=True)
class Step:
    """A step of a transfer that can be run by itself.

    Args:
        method: whose.
        name: of the step, or of those that one call does together.
        predicted: by the formulas.
        work: does it.
    """

    method: str
    name: str
    predicted: Cost
    work: Callable[[], object]


def steps(shape: tuple[int, int], rank: int, device: str = "cpu") -> Iterator[Step]:
    """Those of `casa`, `matched-gain` and `direct` on a layer like one of Wan's.

    Args:
        shape: (out, in).
        rank: of the LoRA and of the output.
        device: torch name.
    """
    m, n = shape
    generator = seeded("cost", m, n)
    source, target = weight_pair(m, n, DRIFT, generator, device=device)
    update = LowRank(*lora_factors(m, n, rank, generator)).to(device=device)
    yield Step("casa", "decomposition", costs.thin_basis(m, n), lambda: thin_svd(source))

    basis, drift = thin_svd(source), DenseOperator(target - source)
    casa, params = registry.resolve("casa")
    parts = casa.steps(shape, rank, params, False)
    cold = LayerInputs("layer", update, basis, None, drift)
    warm = LayerInputs("layer", update, basis, None, drift, casa.prepare(cold, params))
    made = casa.transfer(warm, params)
    deciding = [name for name in parts if name not in (*ROUTING, *CUT)]

    def together(names: list[str], work: Callable[[], object]) -> Step:
        return Step("casa", ", ".join(names), costs.total(parts[name] for name in names), work)

    yield together([name for name in ROUTING if name in parts], lambda: casa.prepare(cold, params))
    yield together(deciding, lambda: casa.transfer(warm, params))
    yield together([*CUT], lambda: truncated_svd(made.update, rank=rank, start=made.start, seed=1))

    gain, gain_params = registry.resolve("matched-gain")
    pair = LayerInputs("layer", update, None, None, drift, None, DenseOperator(source), DenseOperator(target))
    predicted = gain.cost(shape, rank, gain_params, False)
    yield Step("matched-gain", "all of it", predicted, lambda: _balanced(gain.transfer(pair, gain_params).update))
    yield Step("direct", "factors balanced", costs.factors(m, n, rank), lambda: _balanced(update))


def _balanced(update: object) -> LowRank:
    assert isinstance(update, LowRank)
    return update.balanced()


def bytes_on_a_card(shape: tuple[int, int]) -> int:
    """What `casa` takes of a card for the first LoRA of a layer, as docs/cost.md says: two matrices of the layer's size
    and six squares of its shorter side."""
    p, longer = min(shape), max(shape)
    return 8 * p * longer + 24 * p * p


def done(device: str) -> None:
    """Wait until a card has done all that it was asked for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
