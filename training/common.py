"""What every training script shares: its options, the model, its noise schedule, resumable runs, the log."""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from sizes import SIZES, Plan, Size
from torch import Tensor, nn

from loraport.engine.devices import pick_devices
from loraport.errors import LoraportError
from loraport.zoo import world
from loraport.zoo.attention import FrameCausalProcessor
from loraport.zoo.position import tell_positions

SHIFT = 3.0

STEPS = 2
"""Steps of the distilled models."""

# The matrices that LoRAs act on: those of attention and feed-forward, as in LoRAs for the big models.
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of every script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="how large models and clips are")
    parser.add_argument("--device", metavar="auto|cpu|cuda[:N]", help="tiny: the CPU; middle: a GPU if there is one")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def training_arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of a script that trains; what is not given is as the size has it."""
    parser = arguments(description)
    parser.add_argument("--steps", type=int, help="other than the size's own")
    parser.add_argument("--rate", type=float, help="other than the size's own")
    parser.add_argument("--batch", type=int, help="other than the size's own")
    parser.add_argument("--seed", type=int, help="other than the script's own")
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the options, and from here on make tensors on the device. ``size`` is a `Size`, ``device`` torch's."""
    options = parser.parse_args()
    options.size = SIZES[options.size]
    try:
        options.device = torch.device(pick_devices(options.device or options.size.device)[0])
    except LoraportError as error:
        parser.error(str(error))
    torch.set_num_threads(options.threads)
    if options.device.type != "cpu":
        torch.set_default_device(options.device)
    return options


def plan_of(name: str, options: argparse.Namespace) -> Plan:
    """How the size trains this, with what the options want otherwise."""
    given = {key: getattr(options, key) for key in ("steps", "rate", "batch") if getattr(options, key)}
    return replace(options.size.plans[name], **given)


def seeded(seed: int) -> torch.Generator:
    """Random numbers on the device of the script."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def new_model(seed: int, size: Size) -> WanTransformer3DModel:
    with torch.device("cpu"):  # begins from the same weights on every device
        torch.manual_seed(seed)
        model = WanTransformer3DModel(**size.config)
    tell_positions(model)
    return model.to(torch.get_default_device())


def shifted(uniform: Tensor, shift: float = SHIFT) -> Tensor:
    """The flow-matching timestep shift of SD3 and Wan: more of [0, 1] at the noisy end (1 is noise)."""
    return shift * uniform / (1 + (shift - 1) * uniform)


def load_model(folder: Path, size: Size) -> WanTransformer3DModel:
    with torch.device("cpu"):
        model = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32)
    if model.config.ffn_dim != size.config["ffn_dim"]:
        raise SystemExit(f"{folder} is a model of another size than --size {size.name}")
    tell_positions(model)
    return model.to(torch.get_default_device())


def set_causal(model: WanTransformer3DModel, size: Size) -> None:
    """Every frame sees itself and those before it."""
    _, high, wide = model.config.patch_size
    for block in model.blocks:
        block.attn1.set_processor(FrameCausalProcessor((size.clip.side // high) * (size.clip.side // wide)))


def save_model(model: nn.Module, parameters: dict[str, Tensor], folder: Path, size: Size) -> None:
    """Write a diffusers folder in bfloat16; what is trained on top of it starts from the rounded weights."""
    model.load_state_dict(parameters)
    copy = WanTransformer3DModel(**size.config).to(torch.bfloat16)
    copy.load_state_dict({key: value.to(torch.bfloat16) for key, value in model.state_dict().items()})
    copy.save_pretrained(folder / "transformer")


def add_lora(model: WanTransformer3DModel, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Freeze the model and put a PEFT LoRA of scale 1 on it; returns the trained parameters by name."""
    torch.manual_seed(seed)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS))
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def save_lora(model: WanTransformer3DModel, parameters: dict[str, Tensor], path: Path) -> None:
    """Write the LoRA under diffusers' names for PEFT, ``transformer.blocks.0.attn1.to_q.lora_A.weight``."""
    model.load_state_dict(parameters, strict=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model)
    save_file({f"transformer.{key}": value.to(torch.bfloat16).contiguous() for key, value in state.items()}, path)


def write_card(path: Path, **card: Any) -> None:
    """The JSON card beside a model (``model.json``) or a LoRA (``NAME.json``) that `loraport.zoo` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card, indent=2) + "\n")


def model_card(size: Size, steps: int, guidance: float, attention: str = "full") -> dict[str, Any]:
    """What the card of a model says of its use: how it is sampled, and how large its clips are."""
    sampling = {"steps": steps, "guidance": guidance, "shift": SHIFT, "attention": attention}
    return {"sampling": sampling, "clip": size.clip._asdict()}


def prompt_pool(held_out: bool) -> Tensor:
    """Every prompt [n, 4] that is held out of training, or every other one, in a fixed order."""
    return world.prompt_indices([prompt for prompt in world.all_prompts() if prompt.held_out == held_out])


def draw(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return pool[torch.randint(len(pool), (count,), generator=generator)]


def encode(prompts: Tensor, drop: Tensor | None = None) -> Tensor:
    """Token rows of the prompts; ``drop`` [batch] puts the null prompt in some places."""
    tokens = world.encode(prompts)
    return tokens if drop is None else torch.where(drop[:, None, None], world.encode_null(len(prompts)), tokens)


def velocity(model: nn.Module, clips: Tensor, time_: Tensor, tokens: Tensor) -> Tensor:
    """Predicted ``noise - clip`` [batch, 3, frames, size, size] at times [batch] in [0, 1]; on a GPU in bfloat16."""
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=clips.is_cuda):
        return model(clips, time_ * 1000, tokens, return_dict=False)[0].float()


@torch.inference_mode()
def solve(
    model: nn.Module, prompts: Tensor, noise: Tensor, *, steps: int, guidance: float, every: int = 1, batch: int = 32
) -> Tensor:
    """Euler states [n, steps / every + 1, 3, frames, size, size] from noise (first) to clip (last)."""
    times = shifted(torch.linspace(1, 0, steps + 1))
    done = []
    for part, x in zip(prompts.split(batch), noise.split(batch), strict=True):
        prompted, null, states = world.encode(part), world.encode_null(len(part)), [x]
        for step in range(steps):
            now = times[step].expand(len(x))
            if guidance == 1:
                drift = velocity(model, x, now, prompted)
            else:
                both = velocity(model, torch.cat([x, x]), torch.cat([now, now]), torch.cat([prompted, null]))
                with_prompt, without = both.chunk(2)
                drift = without + guidance * (with_prompt - without)
            x = x + (times[step + 1] - times[step]) * drift
            if (step + 1) % every == 0:
                states.append(x)
        done.append(torch.stack(states, 1))
    return torch.cat(done)


def spread(time_: Tensor) -> Tensor:
    """A time a clip, as a factor of its pixels."""
    return time_.view(-1, 1, 1, 1, 1)


def noised(clips: Tensor, noise: Tensor, time_: Tensor) -> Tensor:
    """What lies between clips (time 0) and noise (1)."""
    return (1 - spread(time_)) * clips + spread(time_) * noise


def flow_matching_loss(model: nn.Module, clips: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(clips.shape, generator=generator)
    time_ = shifted(torch.rand(len(clips), generator=generator))
    return (velocity(model, noised(clips, noise, time_), time_, tokens) - (noise - clips)).square().mean()


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, constant, then a cosine fall to zero over the last ``decay`` steps."""

    steps: int
    rate: float
    warmup: int = 100
    decay: int = 1000

    def __call__(self, step: int) -> float:
        left = (self.steps - step) / max(self.decay, 1)
        fall = 1.0 if left >= 1 else 0.5 - 0.5 * math.cos(math.pi * left)
        return self.rate * min(1.0, (step + 1) / max(self.warmup, 1)) * fall


@dataclass
class Run:
    """A training loop that survives being stopped: state goes to ``folder/name.ckpt`` every minute.

    ``parameters`` are the trained tensors by name, ``average`` their exponential moving average. A process id
    file in ``folder`` lets others pause the run. ``extra`` are further networks and optimizers whose state is kept
    with it; fill it and call ``restore_extra`` before training. The random stream is part of the state, so a
    resumed run draws what an uninterrupted one would have drawn.
    """

    name: str
    folder: Path
    parameters: dict[str, nn.Parameter]
    schedule: Schedule
    seed: int
    average_decay: float = 0.998
    weight_decay: float = 0.0
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.name}.pid").write_text(str(os.getpid()))
        self.generator = seeded(self.seed)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), self.schedule.rate, betas=(0.9, 0.98), weight_decay=self.weight_decay, fused=True
        )
        self.average = {key: value.detach().clone() for key, value in self.parameters.items()}
        self.checkpoint = self.folder / f"{self.name}.ckpt"
        if self.checkpoint.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        with torch.no_grad():
            for key, value in self.parameters.items():
                value.copy_(state["parameters"][key])
                self.average[key].copy_(state["average"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]

    def restore_extra(self) -> None:
        if self.checkpoint.exists():
            for name, state in torch.load(self.checkpoint, weights_only=True, map_location="cpu")["extra"].items():
                self.extra[name].load_state_dict(state)

    def save(self) -> None:
        state = {
            "extra": {name: thing.state_dict() for name, thing in self.extra.items()},
            "parameters": {key: value.detach() for key, value in self.parameters.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def train(self, loss_of_step: Any) -> dict[str, Tensor]:
        """Run to the end of the schedule; returns the averaged parameters. ``loss_of_step(generator)`` -> loss."""
        started = saved = time.monotonic()
        before = self.seconds
        while self.step < self.schedule.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule(self.step)
            loss = loss_of_step(self.generator)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(self.average_decay, self.step / (self.step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
            self.losses.append(loss.item())
            now = time.monotonic()
            if now - saved > 60 or self.step == self.schedule.steps:
                self.seconds = before + now - started
                self.save()
                saved = now
                recent = self.losses[-200:]
                mean = sum(recent) / len(recent)
                print(f"{self.name} step {self.step} loss {mean:.4f} {self.seconds:.0f}s", flush=True)
        self.log(
            seed=self.seed,
            steps=self.step,
            seconds=round(self.seconds, 1),
            loss=round(sum(self.losses[-200:]) / len(self.losses[-200:]), 5),
            rate=self.schedule.rate,
        )
        (self.folder / f"{self.name}.pid").unlink(missing_ok=True)
        return self.average

    def log(self, **values: Any) -> None:
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps({"name": self.name, **values}) + "\n")
