"""A low-rank update on a running model, put on and taken off without a trace."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError
from loraport.sampling.denoiser import Denoiser

Update = Mapping[str, LowRank]
"""Canonical layer name -> what is added to its weight."""


@contextlib.contextmanager
def attached(denoiser: Denoiser, update: Update) -> Iterator[None]:
    """Run a model with an update inside a `with` block; afterwards the model is as it was.

    Float32 weights that lie on the CPU get the update added, which costs nothing a pass. Elsewhere it runs beside the
    weights: 16 bits would round a small change away, and an offloaded weight is brought back by its own hook.
    Nothing is written into the model's own tensors, so it does not matter whether they, or the caller, live in
    `torch.inference_mode`.

    Args:
        denoiser: the model.
        update: layer by layer.

    Raises:
        MismatchError: a layer that the model does not have, or of another size.
    """
    linears = {name: denoiser.linear(name) for name in update}
    for name, linear in linears.items():
        _check(name, linear, update[name])
    with contextlib.ExitStack() as undo, torch.no_grad():
        for name, linear in linears.items():
            undo.callback(_add(linear, update[name]) if _plain(linear) else _run_beside(linear, update[name]))
        yield


def _plain(linear: nn.Linear) -> bool:
    weight = linear.weight
    hooked = hasattr(linear, "_diffusers_hook") or hasattr(linear, "_hf_hook")  # brings the weight from elsewhere
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and not hooked


def _add(linear: nn.Linear, term: LowRank) -> Callable[[], None]:
    """Put a changed weight in the place of the weight; returns what puts the same object back."""
    weight = linear._parameters["weight"]
    assert weight is not None
    changed = torch.addmm(weight.detach(), term.B.float(), term.A.float())
    linear._parameters["weight"] = nn.Parameter(changed, requires_grad=False)

    def restore() -> None:
        linear._parameters["weight"] = weight

    return restore


def _run_beside(linear: nn.Linear, term: LowRank) -> Callable[[], None]:
    own = term.to(linear.weight.dtype, linear.weight.device)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(output.device)
        A, B = own.A.to(x.device), own.B.to(x.device)  # an offloaded module computes elsewhere
        return output + nn.functional.linear(nn.functional.linear(x, A), B)

    return linear.register_forward_hook(add).remove


def _check(name: str, linear: nn.Linear, term: LowRank) -> None:
    shape = tuple(linear.weight.shape)
    if shape != term.shape:
        raise MismatchError(
            "the LoRA does not fit the model",
            where=name,
            values=f"the LoRA is {term.shape[0]} x {term.shape[1]}, the layer {' x '.join(map(str, shape))}",
        )
