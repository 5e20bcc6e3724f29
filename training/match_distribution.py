"""Distil the source by distribution matching (DMD2): few steps, no guidance, no data.

As FastWan, Self-Forcing, Rolling Forcing and Krea Realtime are made. The student's clips are pushed along the
difference of two scores, both of networks like the source: the *real* score is the source's with guidance, the *fake*
score belongs to a copy of the source that is trained all the while on what the student makes. The student meets the
states that it will meet when sampled, since it makes them itself (backward simulation).

`dmd` changes all weights; `self-forcing` does under frame-causal attention, on its own roll-outs; `distill-lora` and
`few-step` train a LoRA, the second against the source without guidance, so that guidance can come from another LoRA
(`train_guidance.py`).
"""

import copy
from dataclasses import dataclass

import torch
from common import (
    STEPS,
    Run,
    Schedule,
    add_lora,
    begin,
    draw,
    load_model,
    model_card,
    noised,
    plan_of,
    prompt_pool,
    save_lora,
    save_model,
    set_causal,
    shifted,
    spread,
    training_arguments,
    velocity,
    write_card,
)
from torch import Generator, Tensor, nn

from loraport.zoo import world
from loraport.zoo.catalogue import ClipSize

FAKE_UPDATES = 2  # of the fake score for one of the student
FAKE_FIRST = 30  # before the student moves; fewer in a run that is shorter than that


@dataclass(frozen=True)
class Kind:
    summary: str
    seed: int
    guidance: float = 2.0
    causal: bool = False
    loras: tuple[str, ...] = ()
    makes: str | None = None


KINDS = {
    "dmd": Kind("distilled to few steps without guidance, by distribution matching", seed=41),
    "self-forcing": Kind(
        "frame-causal, few steps without guidance, by distribution matching on its own roll-outs",
        seed=42,
        causal=True,
    ),
    "distill-lora": Kind(
        "the source plus a LoRA for few steps without guidance, by distribution matching",
        seed=43,
    ),
    "few-step": Kind(
        "the source plus two LoRAs, one for few steps and one instead of guidance",
        seed=44,
        guidance=1.0,
        loras=("few-step", "guidance"),
        makes="two-loras",
    ),
}


def clean(model: nn.Module, clips: Tensor, time_: Tensor, prompts: Tensor, guidance: float = 1.0) -> Tensor:
    """The clip that a model sees in a noisy one, with classifier-free guidance."""
    moved = velocity(model, clips, time_, world.encode(prompts))
    if guidance != 1.0:
        without = velocity(model, clips, time_, world.encode_null(len(prompts)))
        moved = without + guidance * (moved - without)
    return clips - spread(time_) * moved


@torch.no_grad()
def simulate(model: nn.Module, prompts: Tensor, clip: ClipSize, generator: Generator) -> tuple[Tensor, Tensor]:
    """States of the student's own sampling, before a step that is drawn at random; and their times."""
    corners = shifted(torch.linspace(1, 0, STEPS + 1))
    clips = torch.randn(len(prompts), world.CHANNELS, *clip.shape, generator=generator)
    at = int(torch.randint(STEPS, (1,), generator=generator))
    for step in range(at):
        now = corners[step].expand(len(prompts))
        clips = clips + (corners[step + 1] - corners[step]) * velocity(model, clips, now, world.encode(prompts))
    return clips, corners[at].expand(len(prompts))


def main() -> None:
    parser = training_arguments(__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--name", help="other than the kind's own, which makes it held out")
    options = begin(parser)
    kind, size, plan = KINDS[options.kind], options.size, plan_of(options.kind, options)
    name, models = options.name or options.kind, options.out / "final" / "models"
    seed = options.seed or kind.seed

    real = load_model(models / "source", size).eval().requires_grad_(False)
    fake = copy.deepcopy(real).requires_grad_(True)
    start = models / plan.start if (models / plan.start).is_dir() else options.out / plan.start
    student = load_model(start, size)
    if kind.causal:
        set_causal(student, size)
    parameters = add_lora(student, plan.rank, seed) if plan.rank else dict(student.named_parameters())
    schedule = Schedule(plan.steps, plan.rate, 20, int(plan.steps * 0.4))
    run = Run(name, options.out, parameters, schedule, seed, 0.98)
    fakes = torch.optim.AdamW(fake.parameters(), size.fake_rate, betas=(0.0, 0.99), weight_decay=0.0, fused=True)
    run.extra = {"fake": fake, "fakes": fakes}
    run.restore_extra()
    pool = prompt_pool(held_out=False)

    def learn_fake(generator: Generator) -> None:
        prompts = draw(pool, plan.batch, generator)
        clips, time_ = simulate(student, prompts, size.clip, generator)
        with torch.no_grad():
            made = clean(student, clips, time_, prompts)
        noise = torch.randn(made.shape, generator=generator)
        when = shifted(torch.rand(len(made), generator=generator))
        mixed = noised(made, noise, when)
        (velocity(fake, mixed, when, world.encode(prompts)) - (noise - made)).square().mean().backward()
        fakes.step()
        fakes.zero_grad()

    def loss(generator: Generator) -> Tensor:
        for _ in range(FAKE_UPDATES if run.step else min(FAKE_FIRST, plan.steps)):
            learn_fake(generator)
        prompts = draw(pool, plan.batch, generator)
        clips, time_ = simulate(student, prompts, size.clip, generator)
        made = clean(student, clips, time_, prompts)
        with torch.no_grad():
            when = shifted(0.02 + 0.96 * torch.rand(len(made), generator=generator))
            mixed = noised(made, torch.randn(made.shape, generator=generator), when)
            wanted = clean(real, mixed, when, prompts, kind.guidance)
            gap = clean(fake, mixed, when, prompts) - wanted
            gap /= (made - wanted).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-3)
            aim = made - gap
        return 0.5 * (made - aim).square().mean()

    trained = run.train(loss)
    folder = models / (kind.makes or name)
    card = {"summary": kind.summary, "parent": "source"} | ({"held_out": True} if options.name else {})
    card |= model_card(size, STEPS, 1.0, "frame-causal" if kind.causal else "full")
    if plan.rank:
        save_lora(student, trained, options.out / "final" / "distillations" / f"{name}.safetensors")
        card["loras"] = kind.loras or (name,)
    else:
        save_model(student, trained, folder, size)
    write_card(folder / "model.json", **card)


if __name__ == "__main__":
    main()
