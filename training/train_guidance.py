"""A LoRA that does what guidance does: asked once, the source with it answers as the source with guidance does.

With a few-step LoRA beside it (`match_distribution.py few-step`) it makes a distilled model of two files, as
LongLive-Plug publishes them. It learns on clips of the renderer, at all noise levels.
"""

import argparse
import copy
from pathlib import Path

import torch
from common import Run, Schedule, add_lora, draw, load_model, prompt_pool, save_lora, shifted, velocity
from torch import Generator, Tensor

from loraport.zoo import world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=45)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    student = load_model(options.out / "final" / "models" / "source")
    source = copy.deepcopy(student).eval().requires_grad_(False)
    parameters = add_lora(student, options.rank, options.seed)
    schedule = Schedule(options.steps, options.rate, 50, options.steps // 2)
    run = Run("guidance", options.out, parameters, schedule, options.seed, 0.99)
    pool = prompt_pool(held_out=False)

    def loss(generator: Generator) -> Tensor:
        prompts = draw(pool, options.batch, generator)
        clips, time_ = (
            world.render(prompts, generator=generator),
            shifted(torch.rand(options.batch, generator=generator)),
        )
        level = time_.view(-1, 1, 1, 1, 1)
        mixed = (1 - level) * clips + level * torch.randn(clips.shape, generator=generator)
        with torch.no_grad():
            asked = velocity(source, mixed, time_, world.encode(prompts))
            without = velocity(source, mixed, time_, world.encode_null(options.batch))
            wanted = without + options.guidance * (asked - without)
        return (velocity(student, mixed, time_, world.encode(prompts)) - wanted).square().mean()

    save_lora(student, run.train(loss), options.out / "final" / "distillations" / "guidance.safetensors")


if __name__ == "__main__":
    main()
