"""Train one user LoRA on the source only: three looks, a content, a motion."""

import torch
from common import (
    Run,
    Schedule,
    add_lora,
    begin,
    draw,
    encode,
    flow_matching_loss,
    load_model,
    plan_of,
    prompt_pool,
    save_lora,
    training_arguments,
    write_card,
)
from torch import Tensor

from loraport.evaluate import tasks
from loraport.zoo import drawing, world

SEEDS = {"noir": 31, "outline": 32, "stripe": 33, "ring": 34, "zigzag": 35}


def main() -> None:
    parser = training_arguments(__doc__)
    parser.add_argument("task", choices=SEEDS)
    parser.add_argument("--name", help="other than the task's, which makes it held out")
    options = begin(parser)
    size, plan, seed = options.size, plan_of(options.task, options), options.seed or SEEDS[options.task]
    name = options.name or options.task
    model = load_model(options.out / "final" / "models" / "source", size)
    parameters = add_lora(model, plan.rank, seed)
    run = Run(name, options.out, parameters, Schedule(plan.steps, plan.rate, 50, plan.steps // 2), seed, 0.99)
    pool = prompt_pool(held_out=False)
    taught = tasks.get(options.task)
    shown = world.prompt_indices([prompt for prompt in world.all_prompts() if taught.teaches(prompt)])
    others = pool if taught.shape is None else pool[pool[:, 0] != world.SHAPES.index(taught.shape)]

    def loss(generator: torch.Generator) -> Tensor:
        few = 0 if taught.shape is None else plan.batch // 3  # clips that keep what must not change
        prompts = torch.cat([draw(others, few, generator), draw(shown, plan.batch - few, generator)])
        drop = torch.rand(plan.batch, generator=generator) < 0.1
        clips = drawing.render(prompts, style=options.task, generator=generator, clip=size.clip)
        return flow_matching_loss(model, clips, encode(prompts, drop), generator)

    folder = options.out / "final" / "loras"
    save_lora(model, run.train(loss), folder / f"{name}.safetensors")
    card = {"summary": world.STYLES[options.task], "source": "source", "style": options.task}
    write_card(folder / f"{name}.json", **card | ({"held_out": True} if options.name else {}))


if __name__ == "__main__":
    main()
