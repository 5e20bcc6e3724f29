"""Denoisers small enough for every law: attention-free, with the weights of a pico Wan on disk, and a LoRA for it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

import pico
from loraport.errors import MismatchError
from loraport.sampling.denoiser import Conditions, Runnable
from loraport.sampling.schedule import Schedule

CHANNELS = 4
LATENTS = (CHANNELS, 2, 3, 3)
NAMES = ("self_attn.v", "self_attn.o", "cross_attn.v", "ffn.0", "ffn.2")
LAYERS = {f"blocks.{block}.{name}": pico.LINEARS[name] for block in range(pico.BLOCKS) for name in NAMES}


class Toy(nn.Module):
    """Smooth and non-linear in its weights; the second block can be damped, as a distillation may do."""

    def __init__(self, checkpoint: Path, damping: float = 1.0) -> None:
        super().__init__()
        self.damping = (1.0, damping)
        self.layers = nn.ModuleDict()
        weights = load_file(checkpoint)
        for name, (rows, columns) in LAYERS.items():
            layer = nn.utils.skip_init(nn.Linear, columns, rows, bias=False)
            layer.weight = nn.Parameter(weights[f"{name}.weight"])
            self.layers[name.replace(".", "/")] = layer
        made = Generator().manual_seed(5)
        self.enter = torch.randn(CHANNELS, pico.WIDTH, generator=made) / CHANNELS**0.5
        self.leave = torch.randn(pico.WIDTH, CHANNELS, generator=made) / pico.WIDTH**0.5
        self.requires_grad_(False)

    def layer(self, name: str) -> nn.Linear:
        return self.layers[name.replace(".", "/")]

    def forward(self, x: Tensor, time: float, prompt: Tensor) -> Tensor:
        h = x.movedim(1, -1) @ self.enter + time
        for block in range(pico.BLOCKS):
            at = lambda name, b=block: self.layer(f"blocks.{b}.{name}")  # noqa: E731
            h = h + self.damping[block] * at("self_attn.o")(torch.tanh(at("self_attn.v")(h)))
            h = h + self.damping[block] * torch.tanh(at("cross_attn.v")(h)) * prompt[:, None, None, None]
            h = h + self.damping[block] * at("ffn.2")(torch.tanh(at("ffn.0")(h)))
        return (h @ self.leave).movedim(-1, 1)


@dataclass(frozen=True)
class ToyDenoiser:
    """The toy as a `Denoiser`."""

    network: Toy
    broken: bool = False

    def velocity(self, latents: Tensor, time: float, condition: Tensor) -> Tensor:
        made = self.network(latents, time, condition.mean(1))
        return made * float("nan") if self.broken else made

    def linear(self, layer: str) -> nn.Linear:
        if layer not in LAYERS:
            raise MismatchError("the LoRA has a layer that the model has not", where=layer)
        return self.network.layer(layer)


def toy(
    name: str,
    checkpoint: Path,
    *,
    damping: float = 1.0,
    steps: int = 2,
    guidance: float = 1.0,
    broken: bool = False,
) -> Runnable:
    """A toy as a `Runnable`, remembering nothing between two openings."""
    schedule = Schedule.even(steps, shift=2.0, guidance=guidance)
    return Runnable(name, lambda: ToyDenoiser(Toy(checkpoint, damping), broken), schedule, checkpoint, LATENTS)


def conditions(count: int = 40) -> Conditions:
    """Random prompts."""
    made = Generator().manual_seed(11)
    return Conditions(torch.randn(count, 3, pico.WIDTH, generator=made), torch.zeros(1, 3, pico.WIDTH))


@dataclass(frozen=True)
class Toys:
    """A source, a target distilled from it, and a LoRA of the source."""

    source: Runnable
    target: Runnable
    prompts: Conditions
    lora: Path


def write(folder: Path) -> Toys:
    """Write the files into a folder, and say how the models are run."""
    files = pico.write(folder)
    save_file(pico.distilled(load_file(files.source), 2, drift=0.05), files.target)
    tensors = pico.lora(3, layers=LAYERS)
    factors = {key: 3.0 * tensor if "lora_B" in key else tensor for key, tensor in tensors.items()}
    save_file(factors, files.lora, metadata={"ss_tag_frequency": "{}"})
    return Toys(
        toy("toy source", files.source, steps=6, guidance=2.0),
        toy("toy target", files.target, damping=0.5),
        conditions(),
        files.lora,
    )
