"""A LoRA that does what guidance does: asked once, the source with it answers as the source with guidance does.

With a few-step LoRA beside it (`match_distribution.py few-step`) it makes a distilled model of two files, as
LongLive-Plug publishes them. It learns on clips of the renderer, at all noise levels.
"""

import copy

import torch
from common import (
    Run,
    Schedule,
    add_lora,
    begin,
    draw,
    load_model,
    noised,
    plan_of,
    prompt_pool,
    save_lora,
    shifted,
    training_arguments,
    velocity,
)
from torch import Generator, Tensor

from loraport.zoo import drawing, world


def main() -> None:
    parser = training_arguments(__doc__.splitlines()[0])
    parser.add_argument("--guidance", type=float, default=2.0)
    options = begin(parser)
    size, plan, seed = options.size, plan_of("guidance", options), options.seed or 45
    student = load_model(options.out / "final" / "models" / "source", size)
    source = copy.deepcopy(student).eval().requires_grad_(False)
    parameters = add_lora(student, plan.rank, seed)
    schedule = Schedule(plan.steps, plan.rate, 50, plan.steps // 2)
    run = Run("guidance", options.out, parameters, schedule, seed, 0.99)
    pool = prompt_pool(held_out=False)

    def loss(generator: Generator) -> Tensor:
        prompts = draw(pool, plan.batch, generator)
        clips = drawing.render(prompts, generator=generator, clip=size.clip)
        time_ = shifted(torch.rand(plan.batch, generator=generator))
        mixed = noised(clips, torch.randn(clips.shape, generator=generator), time_)
        with torch.no_grad():
            asked = velocity(source, mixed, time_, world.encode(prompts))
            without = velocity(source, mixed, time_, world.encode_null(plan.batch))
            wanted = without + options.guidance * (asked - without)
        return (velocity(student, mixed, time_, world.encode(prompts)) - wanted).square().mean()

    save_lora(student, run.train(loss), options.out / "final" / "distillations" / "guidance.safetensors")


if __name__ == "__main__":
    main()
