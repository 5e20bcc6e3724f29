"""A LoRA's directions on a running model, with coefficients that can be turned between two passes."""

from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraport.calibration.directions import Directions
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError
from loraport.sampling.denoiser import Denoiser


class Attached:
    """Directions on a denoiser, in a `with` block; the model is left as it was found.

    Float32 weights get the update added, which costs nothing a pass. Weights of fewer bits would round a small change
    away, so there the update runs beside them, as it does wherever gradients in the coefficients are wanted.

    Args:
        denoiser: the model. directions: what can be turned.
        beside: run beside the weights whatever their dtype.

    Attributes:
        coarse: some weights have fewer than 32 bits, so that passes are noisy.

    Raises:
        MismatchError: a layer that the model does not have, or of another size.
    """

    def __init__(self, denoiser: Denoiser, directions: Directions, *, beside: bool = False):
        self._linears = {name: denoiser.linear(name) for name in directions.layers}
        for name, linear in self._linears.items():
            _check(name, linear, directions.terms(name)[0][1])
        self._terms = {name: directions.terms(name) for name in directions.layers}
        self.coarse = any(linear.weight.dtype != torch.float32 for linear in self._linears.values())
        self._beside = beside or self.coarse
        self._now: list[float] | None = None
        self._coefficients: Float[Tensor, " k"] | None = None
        self._weights: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Attached":
        if self._beside:
            for name, linear in self._linears.items():
                terms = [(k, term.to(linear.weight.dtype, linear.weight.device)) for k, term in self._terms[name]]
                self._hooks.append(linear.register_forward_hook(self._hook(terms)))
        else:
            self._weights = {name: linear.weight.data for name, linear in self._linears.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.take_off()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def put_on(self, coefficients: Float[Tensor, " k"]) -> None:
        """Run with this update from now on."""
        if self._beside:
            self._coefficients = coefficients
            return
        new = coefficients.tolist()
        for name, linear in self._linears.items():
            terms = self._terms[name]
            if self._now is not None and all(self._now[k] == new[k] for k, _ in terms):
                continue  # a difference in one group leaves most layers as they are
            weight = self._weights[name]
            total = weight.clone()
            for k, term in terms:
                if new[k] != 0:
                    total.addmm_(term.B.to(weight.device), term.A.to(weight.device), alpha=new[k])
            linear.weight.data = total
        self._now = new

    def take_off(self) -> None:
        """Run without any update from now on."""
        self._coefficients, self._now = None, None
        for name, weight in self._weights.items():
            self._linears[name].weight.data = weight

    def _hook(self, terms: list[tuple[int, LowRank]]):
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            chosen = self._coefficients
            if chosen is None:
                return output
            x = inputs[0]
            for k, term in terms:
                A, B = term.A.to(x.device), term.B.to(x.device)  # an offloaded module computes elsewhere
                side = nn.functional.linear(nn.functional.linear(x, A), B)
                output = output + chosen[k].to(x.device, x.dtype) * side
            return output

        return add


def _check(name: str, linear: nn.Linear, term: LowRank) -> None:
    shape = tuple(linear.weight.shape)
    if shape != term.shape:
        raise MismatchError(
            "the LoRA does not fit the model",
            where=name,
            values=f"the LoRA is {term.shape[0]} x {term.shape[1]}, the layer {' x '.join(map(str, shape))}",
        )
