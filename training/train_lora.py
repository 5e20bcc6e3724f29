"""Train one user LoRA on the source only: three looks, a content, a motion."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    Run,
    Schedule,
    add_lora,
    draw,
    encode,
    flow_matching_loss,
    load_model,
    prompt_pool,
    save_lora,
    write_card,
)
from torch import Tensor

from loraport.evaluate import tasks
from loraport.zoo import world


@dataclass(frozen=True)
class Task:
    steps: int
    seed: int
    rank: int = 8
    rate: float = 2e-3


TASKS = {
    "noir": Task(steps=350, seed=31),
    "outline": Task(steps=600, seed=32),
    "stripe": Task(steps=350, seed=33),
    "ring": Task(steps=900, seed=34, rank=16),
    "zigzag": Task(steps=1600, seed=35, rank=16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="other than the task's, which makes it held out")
    parser.add_argument("--steps", type=int, help="other than the task's own")
    parser.add_argument("--seed", type=int, help="other than the task's own")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = TASKS[options.task]
    model = load_model(options.out / "final" / "models" / "source")
    seed = options.seed or task.seed
    parameters = add_lora(model, task.rank, seed)
    steps = options.steps or task.steps
    name = options.name or options.task
    run = Run(name, options.out, parameters, Schedule(steps, task.rate, 50, steps // 2), seed, 0.99)
    pool = prompt_pool(held_out=False)
    taught = tasks.get(options.task)
    shown = world.prompt_indices([prompt for prompt in world.all_prompts() if taught.teaches(prompt)])
    others = pool if taught.shape is None else pool[pool[:, 0] != world.SHAPES.index(taught.shape)]

    def loss(generator: torch.Generator) -> Tensor:
        few = 0 if taught.shape is None else options.batch // 3  # clips that keep what must not change
        prompts = torch.cat([draw(others, few, generator), draw(shown, options.batch - few, generator)])
        drop = torch.rand(options.batch, generator=generator) < 0.1
        clips = world.render(prompts, style=options.task, generator=generator)
        return flow_matching_loss(model, clips, encode(prompts, drop), generator)

    folder = options.out / "final" / "loras"
    save_lora(model, run.train(loss), folder / f"{name}.safetensors")
    card = {"summary": world.STYLES[options.task], "source": "source", "style": options.task}
    write_card(folder / f"{name}.json", **card | ({"held_out": True} if options.name else {}))


if __name__ == "__main__":
    main()
