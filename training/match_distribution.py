"""Distil the source by distribution matching (DMD2): few steps, no guidance, no data.

As FastWan, Self-Forcing, Rolling Forcing and Krea Realtime are made. The student's clips are pushed along the
difference of two scores, both of networks like the source: the *real* score is the source's with guidance, the *fake*
score belongs to a copy of the source that is trained all the while on what the student makes. The student meets the
states that it will meet when sampled, since it makes them itself (backward simulation).

`dmd` changes all weights; `self-forcing` does under frame-causal attention, on its own roll-outs; `distill-lora` and
`few-step` train a LoRA, the second against the source without guidance, so that guidance can come from another LoRA
(`train_guidance.py`).
"""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    STEPS,
    Run,
    Schedule,
    add_lora,
    draw,
    load_model,
    prompt_pool,
    sampling_card,
    save_lora,
    save_model,
    set_causal,
    shifted,
    velocity,
    write_card,
)
from torch import Generator, Tensor, nn

from loraport.zoo import world

FAKE_RATE = 4e-4
FAKE_UPDATES = 2  # of the fake score for one of the student
FAKE_FIRST = 30  # before the student moves
NOISE = world.CHANNELS, world.FRAMES, world.SIZE, world.SIZE


@dataclass(frozen=True)
class Kind:
    summary: str
    steps: int
    rate: float
    seed: int
    start: str = "source"
    guidance: float = 2.0
    causal: bool = False
    rank: int | None = None
    loras: tuple[str, ...] = ()
    makes: str | None = None


KINDS = {
    "dmd": Kind("distilled to few steps without guidance, by distribution matching", steps=250, rate=3e-4, seed=41),
    "self-forcing": Kind(
        "frame-causal, few steps without guidance, by distribution matching on its own roll-outs",
        steps=300,
        rate=1e-4,
        seed=42,
        start="causal-init",
        causal=True,
    ),
    "distill-lora": Kind(
        "the source plus a LoRA for few steps without guidance, by distribution matching",
        steps=250,
        rate=1e-3,
        seed=43,
        rank=16,
    ),
    "few-step": Kind(
        "the source plus two LoRAs, one for few steps and one instead of guidance",
        steps=250,
        rate=1e-3,
        seed=44,
        guidance=1.0,
        rank=16,
        loras=("few-step", "guidance"),
        makes="two-loras",
    ),
}
CORNERS = shifted(torch.linspace(1, 0, STEPS + 1))


def spread(time_: Tensor) -> Tensor:
    return time_.view(-1, 1, 1, 1, 1)


def clean(model: nn.Module, clips: Tensor, time_: Tensor, prompts: Tensor, guidance: float = 1.0) -> Tensor:
    """The clip that a model sees in a noisy one, with classifier-free guidance."""
    moved = velocity(model, clips, time_, world.encode(prompts))
    if guidance != 1.0:
        without = velocity(model, clips, time_, world.encode_null(len(prompts)))
        moved = without + guidance * (moved - without)
    return clips - spread(time_) * moved


@torch.no_grad()
def simulate(model: nn.Module, prompts: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """States of the student's own sampling, before a step that is drawn at random; and their times."""
    clips = torch.randn(len(prompts), *NOISE, generator=generator)
    at = int(torch.randint(STEPS, (1,), generator=generator))
    for step in range(at):
        now = CORNERS[step].expand(len(prompts))
        clips = clips + (CORNERS[step + 1] - CORNERS[step]) * velocity(model, clips, now, world.encode(prompts))
    return clips, CORNERS[at].expand(len(prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="other than the kind's own, which makes it held out")
    parser.add_argument("--steps", type=int, help="other than the kind's own")
    parser.add_argument("--rate", type=float, help="other than the kind's own")
    parser.add_argument("--seed", type=int, help="other than the kind's own")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kind = KINDS[options.kind]
    name, models = options.name or options.kind, options.out / "final" / "models"
    steps, rate, seed = options.steps or kind.steps, options.rate or kind.rate, options.seed or kind.seed

    real = load_model(models / "source").eval().requires_grad_(False)
    fake = copy.deepcopy(real).requires_grad_(True)
    start = models / kind.start if (models / kind.start).is_dir() else options.out / kind.start
    student = load_model(start)
    if kind.causal:
        set_causal(student)
    parameters = add_lora(student, kind.rank, seed) if kind.rank else dict(student.named_parameters())
    run = Run(name, options.out, parameters, Schedule(steps, rate, 20, int(steps * 0.4)), seed, 0.98)
    fakes = torch.optim.AdamW(fake.parameters(), FAKE_RATE, betas=(0.0, 0.99), weight_decay=0.0, fused=True)
    run.extra = {"fake": fake, "fakes": fakes}
    run.restore_extra()
    pool = prompt_pool(held_out=False)

    def learn_fake(generator: Generator) -> None:
        prompts = draw(pool, options.batch, generator)
        clips, time_ = simulate(student, prompts, generator)
        with torch.no_grad():
            made = clean(student, clips, time_, prompts)
        noise = torch.randn(made.shape, generator=generator)
        when = shifted(torch.rand(len(made), generator=generator))
        mixed = (1 - spread(when)) * made + spread(when) * noise
        (velocity(fake, mixed, when, world.encode(prompts)) - (noise - made)).square().mean().backward()
        fakes.step()
        fakes.zero_grad()

    def loss(generator: Generator) -> Tensor:
        for _ in range(FAKE_UPDATES if run.step else FAKE_FIRST):
            learn_fake(generator)
        prompts = draw(pool, options.batch, generator)
        clips, time_ = simulate(student, prompts, generator)
        made = clean(student, clips, time_, prompts)
        with torch.no_grad():
            when = shifted(0.02 + 0.96 * torch.rand(len(made), generator=generator))
            mixed = (1 - spread(when)) * made + spread(when) * torch.randn(made.shape, generator=generator)
            wanted = clean(real, mixed, when, prompts, kind.guidance)
            gap = clean(fake, mixed, when, prompts) - wanted
            gap /= (made - wanted).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-3)
            aim = made - gap
        return 0.5 * (made - aim).square().mean()

    trained = run.train(loss)
    folder = models / (kind.makes or name)
    card = {"summary": kind.summary, "parent": "source"} | ({"held_out": True} if options.name else {})
    card["sampling"] = sampling_card(STEPS, 1.0, "frame-causal" if kind.causal else "full")
    if kind.rank:
        save_lora(student, trained, options.out / "final" / "distillations" / f"{name}.safetensors")
        card["loras"] = kind.loras or (name,)
    else:
        save_model(student, trained, folder)
    write_card(folder / "model.json", **card)


if __name__ == "__main__":
    main()
