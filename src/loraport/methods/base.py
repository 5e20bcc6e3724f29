"""What a transfer method is: it says what it needs of a layer and turns that into the layer's new update."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, Operator

Stat = float | int | str


class Params(BaseModel):
    """Base of all parameter sets: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Needs:
    """What a method reads besides the LoRA itself. What is not needed is not computed."""

    basis: bool = False
    target_basis: bool = False
    drift: bool = False
    weight: bool = False


@dataclass(frozen=True)
class LayerInputs:
    """One layer. All tensors share dtype and device.

    Args:
        name: canonical layer name, for messages.
        update: the LoRA update (m x n), alpha folded in.
        basis: SVD of the source weight, if needed.
        target_basis: SVD of the target weight, if needed.
        drift: target minus source weight, if needed; `LowRank` when the distillation is itself a LoRA.
        prepared: what `TransferMethod.prepare` returned for this layer, if the caller kept it.
        weight: the source weight itself, if needed.
    """

    name: str
    update: LowRank
    basis: SpectralBasis | None = None
    target_basis: SpectralBasis | None = None
    drift: Operator | None = None
    prepared: Mapping[str, Tensor] | None = None
    weight: DenseOperator | None = None


@dataclass(frozen=True)
class LayerOutput:
    """The new update as an operator, figures for the report, and a hint for its range (for `compress`)."""

    update: Operator
    stats: dict[str, Stat]
    start: LowRank


class TransferMethod(ABC):
    """A way to carry an update from source to target.

    `version` is part of every cache key: raise it when results change. A method that `keeps_rank` returns updates of
    the input's rank at most, so that the output needs no more.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    summary: ClassVar[str]
    reference: ClassVar[str]
    Params: ClassVar[type[Params]]
    keeps_rank: ClassVar[bool] = False

    @abstractmethod
    def needs(self, params: Params) -> Needs:
        """What `transfer` will read with these parameters."""

    @abstractmethod
    def transfer(self, inputs: LayerInputs, params: Params) -> LayerOutput:
        """The new update of one layer, to be added to the target weight."""

    def prepared_key(self, params: Params) -> str | None:
        """Identity of what `prepare` computes, or None when there is nothing worth keeping."""
        return None

    def reads_drift(self, shape: tuple[int, int], params: Params) -> bool:
        """Whether `transfer` reads `inputs.drift` of such a layer even if `inputs.prepared` is given."""
        return self.needs(params).drift

    def prepare(self, inputs: LayerInputs, params: Params) -> dict[str, Tensor]:
        """Tensors that depend on source and target but not on the LoRA, at most min(m, n)^2 entries in all.

        Optional: `transfer` computes them if `inputs.prepared` is None. A caller that keeps them under (source
        weight, target weight, method, version, `prepared_key`) saves the next LoRA that work. Of `inputs.update`
        only the shape is read. Opaque: hand them back as they are.
        """
        return {}
