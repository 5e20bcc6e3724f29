"""What a transfer method is: it says what it needs of a layer, and turns that into the layer's new update."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from loraport.methods import cost as costs
from loraport.methods.columns import Column
from loraport.methods.cost import Cost
from loraport.methods.maps import LayerMap, MapValues

if TYPE_CHECKING:  # what a method says of itself needs no torch
    from torch import Tensor

    from loraport.core.basis import SpectralBasis
    from loraport.core.lowrank import LowRank
    from loraport.core.operators import Operator

Stat = float | int | str


class Params(BaseModel):
    """Base of all parameter sets: frozen; an unknown name is an error, and so is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def described(cls) -> dict[str, str]:
        """What each parameter does, by name, from the docstring's "name: what it does" lines."""
        found: dict[str, str] = {}
        name = None
        for line in map(str.strip, (cls.__doc__ or "").splitlines()):
            known, colon, text = line.partition(":")
            if colon and known in cls.model_fields:
                name, found[known] = known, text.strip()
            elif name is not None and line:
                found[name] += f" {line}"
        return found


P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Needs:
    """What a method reads besides the LoRA itself. What is not needed is neither read nor computed.

    Args:
        source: the source weight.
        target: the target weight.
        drift: target minus source.
        basis: thin SVD of the source weight.
        target_basis: thin SVD of the target weight.
    """

    source: bool = False
    target: bool = False
    drift: bool = False
    basis: bool = False
    target_basis: bool = False

    @property
    def nothing(self) -> bool:
        """The LoRA is enough."""
        return not (self.source or self.target or self.drift or self.basis or self.target_basis)


@dataclass(frozen=True)
class LayerInputs:
    """One layer. All tensors share dtype and device. What `Needs` asks for is there; `require_...` hands it out.

    Args:
        name: canonical layer name, for messages.
        update: the LoRA update (m x n), alpha folded in.
        basis: SVD of the source weight.
        target_basis: SVD of the target weight.
        drift: target minus source weight; `LowRank` when the distillation is itself a LoRA.
        prepared: what `TransferMethod.prepare` returned for this layer, if the caller kept it.
        source: the source weight.
        target: the target weight.
    """

    name: str
    update: "LowRank"
    basis: "SpectralBasis | None" = None
    target_basis: "SpectralBasis | None" = None
    drift: "Operator | None" = None
    prepared: "Mapping[str, Tensor] | None" = None
    source: "Operator | None" = None
    target: "Operator | None" = None

    def require_basis(self) -> "SpectralBasis":
        """The source weight's basis. Raises RuntimeError if it was not asked for."""
        return _given(self.basis, self.name, "basis")

    def require_target_basis(self) -> "SpectralBasis":
        """The target weight's basis. Raises RuntimeError if it was not asked for."""
        return _given(self.target_basis, self.name, "target_basis")

    def require_source(self) -> "Operator":
        """The source weight. Raises RuntimeError if it was not asked for."""
        return _given(self.source, self.name, "source")

    def require_target(self) -> "Operator":
        """The target weight. Raises RuntimeError if it was not asked for."""
        return _given(self.target, self.name, "target")

    def require_drift(self) -> "Operator":
        """Target minus source. Raises RuntimeError if it was not asked for."""
        return _given(self.drift, self.name, "drift")


T = TypeVar("T")


def _given(value: T | None, layer: str, need: str) -> T:
    if value is None:
        raise RuntimeError(f"{layer}: the method uses {need!r} but its Needs do not name it")
    return value


@dataclass(frozen=True)
class LayerOutput:
    """The new update of a layer.

    Args:
        update: the exact update, as an operator; the engine cuts it to the output's rank.
        stats: a value for each of the method's `columns` that applies to this layer.
        start: an update with about the same row space, from which the search for the best low rank starts.
        maps: the numbers of each of the method's `maps` that applies to this layer.
    """

    update: "Operator"
    stats: dict[str, Stat]
    start: "LowRank"
    maps: Mapping[str, MapValues] = field(default_factory=dict)


class TransferMethod(ABC, Generic[P]):
    """A way to transfer an update from source to target. One file, one class, marked with `@register`.

    Attributes:
        name: what the user types.
        version: part of every cache key; raised when results change.
        summary: what it does, in half a sentence.
        reference: where it comes from.
        Params: its settings.
        columns: the figures that it reports for a layer.
        maps: what it can draw of a layer.
        keeps_rank: its updates have at most the input's rank, so the output needs no more.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    summary: ClassVar[str]
    reference: ClassVar[str]
    Params: ClassVar[type[Params]]
    columns: ClassVar[tuple[Column, ...]] = ()
    maps: ClassVar[tuple[LayerMap, ...]] = ()
    keeps_rank: ClassVar[bool] = False

    @abstractmethod
    def needs(self, params: P) -> Needs:
        """What `transfer` will read with these parameters."""

    @abstractmethod
    def transfer(self, inputs: LayerInputs, params: P) -> LayerOutput:
        """The new update of one layer, to be added to the target weight."""

    @abstractmethod
    def cost(self, shape: tuple[int, int], rank: int, params: P, warm: bool) -> Cost:
        """Work of `transfer` and of cutting its update to `rank`, for a layer of this shape (out, in).

        Reading the weights, their difference and their bases is the engine's work and not counted.

        Args:
            shape: (out, in) of the weight.
            rank: rank of the input's update or of the output, whichever is larger.
            params: the settings.
            warm: whether what `prepare` computes is already there.
        """

    def steps(self, shape: tuple[int, int], rank: int, params: P, warm: bool) -> dict[str, Cost]:
        """`cost` by steps, for a method that has several. Arguments as for `cost`."""
        return {self.name: self.cost(shape, rank, params, warm)}

    def memory(self, shape: tuple[int, int], rank: int, params: P) -> int:
        """Bytes in use at the peak of `transfer` and of the cut, its inputs included."""
        m, n = shape
        needs = self.needs(params)
        matrices = needs.source + needs.target + needs.drift + (0 if self.keeps_rank else 2)
        bases = (needs.basis + needs.target_basis) * costs.basis_bytes(m, n)
        return costs.matrix_bytes(m, n, matrices) + bases + costs.matrix_bytes(m + n, rank, 6)

    def most_rank(self, shape: tuple[int, int], rank: int, params: P) -> int | None:
        """Rank of the new update at most, for an input's update of rank `rank`; None where only the shape bounds it."""
        return rank if self.keeps_rank else None

    def kept_bytes(self, shape: tuple[int, int], params: P) -> int:
        """Bytes that a run adds to the cache for such a layer besides the finished update."""
        needs = self.needs(params)
        return (needs.basis + needs.target_basis) * costs.basis_bytes(*shape)

    def prepared_key(self, params: P) -> str | None:
        """Identity of what `prepare` computes, or None when there is nothing worth keeping."""
        return None

    def reads_drift(self, shape: tuple[int, int], params: P) -> bool:
        """Whether `transfer` reads `inputs.drift` of such a layer even if `inputs.prepared` is given."""
        return self.needs(params).drift

    def prepare(self, inputs: LayerInputs, params: P) -> "dict[str, Tensor]":
        """Tensors that depend on source and target but not on the LoRA, at most 2 min(m, n)^2 entries in all.

        Optional: `transfer` computes them if `inputs.prepared` is None. A caller that keeps them under (source
        weight, target weight, method, version, `prepared_key`) saves the next LoRA that work. Only the shape of
        `inputs.update` is read. The tensors are opaque: pass them back unchanged.
        """
        return {}


@dataclass(frozen=True)
class Preset:
    """A method with some settings chosen, under its own name.

    Args:
        name: what the user types.
        method: the method's name.
        summary: what it sets, in half a sentence.
        values: the settings.
        rank: output rank that belongs to it; None for the usual one.
    """

    name: str
    method: str
    summary: str
    values: Mapping[str, bool | float | str] = field(default_factory=dict)
    rank: int | None = None


METHODS: dict[str, TransferMethod] = {}
"""Every method by name, filled by `register`. Read it through `loraport.methods.registry`, which loads them all."""

PRESETS: dict[str, Preset] = {}
"""Every preset by name, filled by `preset`."""

M = TypeVar("M", bound=type[TransferMethod])


def register(method: M) -> M:
    """Class decorator: makes a method known by its name to the engine, the command line and Python.

    Raises:
        TypeError: something that every method must say is missing.
        ValueError: another method has that name.
    """
    missing = [each for each in ("name", "version", "summary", "reference", "Params") if not hasattr(method, each)]
    if missing:
        raise TypeError(f"the method {method.__name__} does not say its {', '.join(missing)}")
    if method.name in METHODS and type(METHODS[method.name]).__qualname__ != method.__qualname__:
        raise ValueError(f"two methods are named {method.name!r}")
    METHODS[method.name] = method()
    return method


def preset(
    name: str,
    method: str,
    summary: str,
    values: Mapping[str, bool | float | str] | None = None,
    rank: int | None = None,
) -> None:
    """Make a preset known; it stands in the file of its method."""
    PRESETS[name] = Preset(name, method, summary, values or {}, rank)
