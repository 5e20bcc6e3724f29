"""Make a four-step student of the source, sampled without guidance.

A step of the student has to cover a quarter of the teacher's stored trajectory, so it regresses on the average
velocity of that quarter, ``(x_start - x_end) / (t_start - t_end)``. Four kinds: ``step`` and ``step-strong`` change
all weights (the second at a rate that moves them far); ``causal`` goes on from ``step`` with all weights, under
frame-causal self-attention; ``distill-lora`` leaves the source alone: a LoRA starts as the best approximation of what
``step`` changed, as published distillation LoRAs are extracted, and is then trained.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    Run,
    Schedule,
    add_lora,
    load_model,
    sampling_card,
    save_lora,
    save_model,
    shifted,
    velocity,
    write_card,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from loraport.zoo import world
from loraport.zoo.attention import FrameCausalProcessor


@dataclass(frozen=True)
class Kind:
    summary: str
    steps: int
    rate: float
    seed: int
    start: str = "source"
    causal: bool = False
    rank: int | None = None


KINDS = {
    "step": Kind("distilled to 4 steps without guidance, gently", steps=1500, rate=4e-4, seed=21),
    "step-strong": Kind("distilled to 4 steps without guidance, at a high rate", steps=500, rate=4e-3, seed=22),
    "causal": Kind(
        "distilled to 4 steps without guidance, each frame sees itself and those before it",
        steps=500,
        rate=1e-3,
        seed=23,
        start="step",
        causal=True,
    ),
    "distill-lora": Kind("the source plus a LoRA for 4 steps without guidance", steps=300, rate=1e-3, seed=24, rank=32),
}
CORNERS = shifted(torch.linspace(1, 0, 5))


def load_trajectories(folder: Path) -> tuple[Tensor, Tensor]:
    """Prompts [n, 4] and states [n, 5, 3, frames, size, size], in half precision."""
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return torch.cat([part["prompts"] for part in parts]), torch.cat([part["states"] for part in parts])


@torch.no_grad()
def extract(model: nn.Module, moved: dict[str, Tensor]) -> float:
    """Set the LoRA to the truncated SVD of ``moved - model``, layer by layer; returns the share of energy kept."""
    kept = total = 0.0
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            change = moved[f"{name}.weight"] - layer.base_layer.weight
            u, s, vh = torch.linalg.svd(change, full_matrices=False)
            rank = layer.r["default"]
            root = s[:rank].sqrt()
            layer.lora_B["default"].weight.copy_(u[:, :rank] * root)
            layer.lora_A["default"].weight.copy_(root[:, None] * vh[:rank])
            kept, total = kept + s[:rank].square().sum().item(), total + s.square().sum().item()
    return kept / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="other than the kind's own")
    parser.add_argument("--rate", type=float, help="other than the kind's own")
    parser.add_argument("--seed", type=int, help="other than the kind's own")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kind = KINDS[options.kind]
    steps, rate, seed = options.steps or kind.steps, options.rate or kind.rate, options.seed or kind.seed
    prompts, states = load_trajectories(options.out / "trajectories")
    models = options.out / "final" / "models"
    model = load_model(models / kind.start)
    if kind.causal:
        _, high, wide = model.config.patch_size
        for block in model.blocks:
            block.attn1.set_processor(FrameCausalProcessor((world.SIZE // high) * (world.SIZE // wide)))
    if kind.rank:
        moved = dict(load_model(models / "step").named_parameters())
        parameters = add_lora(model, kind.rank, seed)
        print(f"the LoRA starts with {extract(model, moved):.3f} of the energy of what step changed", flush=True)
    else:
        parameters = dict(model.named_parameters())
    run = Run(options.kind, options.out, parameters, Schedule(steps, rate, decay=steps // 2), seed)

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(prompts), (options.batch,), generator=generator)
        quarter = torch.randint(4, (options.batch,), generator=generator)
        start, end = states[pick, quarter].float(), states[pick, quarter + 1].float()
        now, then = CORNERS[quarter], CORNERS[quarter + 1]
        wanted = (start - end) / (now - then).view(-1, 1, 1, 1, 1)
        return (velocity(model, start, now, world.encode(prompts[pick])) - wanted).square().mean()

    trained = run.train(loss)
    folder = models / options.kind
    if kind.rank:
        save_lora(model, trained, folder / "lora.safetensors")
    else:
        save_model(model, trained, folder)
    sampling = sampling_card(4, 1.0, "frame-causal" if kind.causal else "full")
    write_card(folder / "model.json", summary=kind.summary, parent="source", sampling=sampling)


if __name__ == "__main__":
    main()
