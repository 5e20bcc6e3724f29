"""A denoiser small enough for every law: two attention-free blocks with Wan's layer names, and a LoRA for it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from loraport.calibration import Conditions, Runnable, Schedule
from loraport.errors import MismatchError

WIDTH, CHANNELS = 12, 4
LATENTS = (CHANNELS, 2, 3, 3)
NAMES = ("self_attn.v", "self_attn.o", "cross_attn.v", "ffn.0", "ffn.2")


class Toy(nn.Module):
    """Smooth and non-linear in its weights; a target differs by a drift and by a second block that is damped."""

    def __init__(self, seed: int, drift: float) -> None:
        super().__init__()
        self.damping = (1.0, 1.0 if drift == 0 else 0.5)
        made, other = Generator().manual_seed(seed), Generator().manual_seed(seed + 1)
        self.layers = nn.ModuleDict()
        for block in range(2):
            for name in NAMES:
                layer = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, bias=False)
                weight = torch.randn(WIDTH, WIDTH, generator=made) / WIDTH**0.5
                layer.weight = nn.Parameter(weight + drift * torch.randn(WIDTH, WIDTH, generator=other) / WIDTH**0.5)
                self.layers[f"blocks.{block}.{name}".replace(".", "/")] = layer
        self.enter = torch.randn(CHANNELS, WIDTH, generator=made) / CHANNELS**0.5
        self.leave = torch.randn(WIDTH, CHANNELS, generator=made) / WIDTH**0.5
        self.requires_grad_(False)

    def forward(self, x: Tensor, time: float, prompt: Tensor) -> Tensor:
        h = x.movedim(1, -1) @ self.enter + time
        for block in range(2):
            for name in NAMES:
                y = torch.tanh(self.layers[f"blocks.{block}.{name}".replace(".", "/")](h))
                h = h + self.damping[block] * (y * prompt[:, None, None, None] if "cross" in name else y)
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
        key = layer.replace(".", "/")
        if key not in self.network.layers:
            raise MismatchError("the LoRA has a layer that the model has not", where=layer)
        return self.network.layers[key]


def toy(name: str, *, drift: float = 0.0, steps: int = 2, guidance: float = 1.0, broken: bool = False) -> Runnable:
    """A toy as a `Runnable`, remembering nothing between two openings."""
    schedule = Schedule.even(steps, shift=2.0, guidance=guidance)
    return Runnable(name, lambda: ToyDenoiser(Toy(5, drift), broken), schedule, None, LATENTS)


def conditions(count: int = 40) -> Conditions:
    """Random prompts."""
    made = Generator().manual_seed(11)
    return Conditions(torch.randn(count, 3, WIDTH, generator=made), torch.zeros(1, 3, WIDTH))


@pytest.fixture
def source() -> Runnable:
    return toy("toy source", steps=6, guidance=2.0)


@pytest.fixture
def target() -> Runnable:
    return toy("toy target", drift=0.1)


@pytest.fixture
def prompts() -> Conditions:
    return conditions()


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    made = Generator().manual_seed(3)
    tensors = {}
    for block in range(2):
        for name in NAMES:
            base = f"diffusion_model.blocks.{block}.{name}"
            tensors[f"{base}.lora_A.weight"] = torch.randn(2, WIDTH, generator=made) / WIDTH**0.5
            tensors[f"{base}.lora_B.weight"] = torch.randn(WIDTH, 2, generator=made) * 0.25
    path = tmp_path / "style.safetensors"
    save_file(tensors, path, metadata={"ss_tag_frequency": "{}"})
    return path
