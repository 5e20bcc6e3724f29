"""A LoRA whose only effect is one colour, made for any model from a few passes.

The update is of rank 1, on the last layer of the network alone: `B A` with `A h` nearly 1 whatever the layer is given,
and `B` what the layer has to put out everywhere for the picture to take the colour. Both are measured on the source:

- `A` is the least-squares answer to `A h = 1` over what reaches the layer while a clip is made (`spread` says how far
  from 1 it is).
- `B` needs to know which of the layer's outputs reaches which channel of the decoder, how strongly and with which sign.
  The pipeline is asked: the layer's output is replaced by numbers that spell each position in bits, one step is made,
  and what arrives at the decoder is read. The colour itself is the difference of two flat pictures as the VAE encodes
  them: middling grey with less and with more of it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from loraport.comparing.rendering import Shot, call
from loraport.containers.names import EXPERTS, Expert
from loraport.errors import MismatchError, NumericalError, UnsupportedError
from loraport.models.family import Family
from loraport.sampling.schedule import SamplingSettings

FLAT = 128  # side in pixels of the flat pictures
TOKENS = 4096  # at most, that a pass adds to the measured inputs
RIDGE = 1e-4  # of the mean square of an input, so that directions that hardly occur are left alone


@dataclass
class Inputs:
    """Second moments of what reaches a layer."""

    moments: Tensor | None = None
    total: Tensor | None = None
    count: int = 0

    def add(self, rows: Float[Tensor, "n w"]) -> None:
        """Take what reached it in a pass, or an even part of it."""
        part = rows[:: max(len(rows) // TOKENS, 1)].float()
        moments, total = part.T @ part, part.sum(0)
        self.moments = moments if self.moments is None else self.moments + moments
        self.total = total if self.total is None else self.total + total
        self.count += len(part)

    def constant(self) -> tuple[Float[Tensor, " w"], float]:
        """The direction along which the inputs are nearest to 1, and their standard deviation along it.

        Raises NumericalError where nothing reached the layer.
        """
        if self.moments is None or self.total is None:
            raise NumericalError(
                "one of the two transformers makes none of the steps, so no probe can be made for it",
                fix="use more --source-steps",
            )
        square, mean = (one.double().cpu() / self.count for one in (self.moments, self.total))
        ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
        found = torch.linalg.solve(square + ridge, mean)
        found = found / (found @ mean)
        return found.float(), float((found @ square @ found - 1).clamp(min=0).sqrt())


def last_layer(pipeline: Any, family: Family, expert: Expert = "high") -> Any:
    """The layer that the probe changes; of two transformers that of one. Raises UnsupportedError if none is known."""
    if not family.diffusers.output:
        raise UnsupportedError(
            f"a colour probe cannot be made for {family.title}",
            fix="name the last layer (output) in its yaml file; see docs/adding-an-architecture.md",
        )
    network = getattr(pipeline, EXPERTS[expert][0])
    return network.get_submodule(family.spell(family.diffusers.output, "diffusers"))


@contextlib.contextmanager
def inputs_of(pipeline: Any, family: Family, experts: Sequence[Expert] = ("high",)) -> Iterator[dict[Expert, Inputs]]:
    """Gathers what reaches the last layer, of each of two transformers, inside a `with` block."""
    seen: dict[Expert, Inputs] = {expert: Inputs() for expert in experts}

    def look(expert: Expert, module: Any, inputs: tuple[Tensor, ...]) -> None:
        seen[expert].add(inputs[0].reshape(-1, inputs[0].shape[-1]))

    with contextlib.ExitStack() as undo:
        for expert in experts:
            layer = last_layer(pipeline, family, expert)
            undo.callback(layer.register_forward_pre_hook(partial(look, expert)).remove)
        yield seen


@dataclass
class _Arrived(Exception):
    """What the decoder was given."""

    latents: Tensor = field(default_factory=lambda: torch.empty(0))


def outputs_for(
    pipeline: Any, family: Family, settings: SamplingSettings, shot: Shot, colour: Float[np.ndarray, " 3"]
) -> Float[Tensor, " d"]:
    """What the last layer has to put out more, everywhere, for a colour.

    Args:
        pipeline: of the source.
        family: of its model.
        settings: how it is sampled; one step is made, whatever it says.
        shot: what is asked for.
        colour: by how much red, green and blue are to rise, of 1.

    Raises:
        UnsupportedError: its output does not reach the decoder as a picture of its own.
    """
    width = last_layer(pipeline, family).out_features
    once, twice = (_at_decoder(pipeline, family, settings, shot, torch.full((width,), n)) for n in (1.0, 2.0))
    unit = twice - once
    nothing = once - unit  # not asked for: some pipelines divide by the length of what the network puts out
    number = torch.zeros(unit.shape, dtype=torch.long)
    for bit in range(max(width - 1, 1).bit_length()):
        code = ((torch.arange(width) >> bit) & 1).float()
        share = (_at_decoder(pipeline, family, settings, shot, code) - nothing) / unit
        if not bool((((share - 1).abs() < 0.25) | (share.abs() < 0.25)).all()):
            raise _no_picture(family)
        number += (share > 0.5).long() << bit
    wanted = _colour(pipeline, unit.ndim, colour)
    if len(wanted) != unit.shape[1]:
        raise _no_picture(family)
    made, channel = torch.zeros(width), torch.full((width,), -1)
    for k in range(unit.shape[1]):
        for j in number[:, k].unique().tolist():
            if j >= width or channel[j] not in (-1, k):
                raise _no_picture(family)
            channel[j] = k
            made[j] = wanted[k] / unit[:, k][number[:, k] == j].mean()
    return made


def _no_picture(family: Family) -> UnsupportedError:
    return UnsupportedError(
        f"in {family.title} the output of the network does not reach the decoder as a separate picture",
        fix="a colour probe cannot be made for it",
    )


def _at_decoder(
    pipeline: Any, family: Family, settings: SamplingSettings, shot: Shot, output: Float[Tensor, " d"]
) -> Tensor:
    """What the decoder is given after one step in which the network puts out the same everywhere."""

    def replaced(module: Any, inputs: tuple[Tensor, ...], made: Tensor) -> Tensor:
        return output.to(made.device, made.dtype).expand_as(made).clone()

    def arrived(latents: Tensor, *rest: Any, return_dict: bool = True) -> None:
        raise _Arrived(latents.detach().float().cpu())

    one_step = settings.model_copy(update={"steps": 1, "times": None})
    handle = last_layer(pipeline, family).register_forward_hook(replaced)
    pipeline.vae.decode = arrived
    try:
        call(pipeline, family, one_step, shot)
    except _Arrived as found:
        return found.latents.clone()
    finally:
        handle.remove()
        del pipeline.vae.decode  # what was put over the method of the class
    raise _no_picture(family)


def _colour(pipeline: Any, ndim: int, colour: Float[np.ndarray, " 3"]) -> Float[Tensor, " c"]:
    """The difference of two flat pictures, with less and with more of the colour than grey, as the VAE encodes them."""
    vae = pipeline.vae
    device = getattr(pipeline, "_execution_device", vae.device)
    latents = []
    for half in (-0.5, 0.5):
        shade = torch.ones(4 if vae.config.get("in_channels") == 4 else 3)  # the fourth covers what is behind
        shade[:3] = torch.tensor(0.5 + half * colour, dtype=torch.float32)
        flat = (2 * shade - 1).view(1, -1, *[1] * (ndim - 2))
        picture = flat.expand(-1, -1, *[1] * (ndim - 4), FLAT, FLAT)
        with torch.inference_mode():
            encoded = vae.encode(picture.to(device, vae.dtype)).latent_dist.mode().float().cpu()
        high, wide = encoded.shape[-2:]
        inner = encoded[..., high // 4 : -(high // 4) or None, wide // 4 : -(wide // 4) or None]
        latents.append(inner.flatten(2).mean(2)[0].clone())
    return latents[1] - latents[0]


def write_probe(file: Path, family: Family, read: Float[Tensor, " w"], put: Float[Tensor, " d"]) -> None:
    """Write the update `put read` of the last layer, in the universal spelling. Raises NumericalError."""
    if not bool(torch.isfinite(read).all() and torch.isfinite(put).all()):
        raise NumericalError("the probe has numbers that are not finite", fix="use --precision float32")
    place = family.place(family.diffusers.output, family.universal)
    if place.index is not None:
        raise MismatchError("the last layer is part of a fused weight", where=place.name)
    stem = f"diffusion_model.{place.name}"
    tensors = {f"{stem}.lora_A.weight": read[None].contiguous(), f"{stem}.lora_B.weight": put[:, None].contiguous()}
    save_file(tensors, file, metadata={"format": "pt", "loraport.probe": "a colour"})
