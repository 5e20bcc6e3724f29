"""Train the source: flow matching on captioned clips of the seen attribute combinations, 10 % prompt dropout."""

from pathlib import Path

import torch
from common import (
    Run,
    Schedule,
    begin,
    draw,
    encode,
    flow_matching_loss,
    load_model,
    model_card,
    new_model,
    plan_of,
    prompt_pool,
    save_model,
    training_arguments,
    write_card,
)

from loraport.zoo import drawing


def main() -> None:
    parser = training_arguments(__doc__)
    parser.add_argument("--decay", type=int, help="last steps, in which the rate falls; other than the size's own")
    parser.add_argument("--begin", type=Path, help="a model to go on from, such as one of another world")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, which pays in a long run on a GPU")
    options = begin(parser)
    size, plan, seed = options.size, plan_of("source", options), options.seed or 11
    model = load_model(options.begin, size).requires_grad_(True) if options.begin else new_model(seed, size)
    if options.compile:
        model.compile_repeated_blocks(dynamic=False)
    schedule = Schedule(plan.steps, plan.rate, warmup=200, decay=options.decay or plan.decay)
    run = Run("source", options.out, dict(model.named_parameters()), schedule, seed, average_decay=0.999)

    pool = prompt_pool(held_out=False)

    def loss(generator: torch.Generator) -> torch.Tensor:
        prompts = draw(pool, plan.batch, generator)
        drop = torch.rand(plan.batch, generator=generator) < 0.1
        clips = drawing.render(prompts, generator=generator, clip=size.clip)
        return flow_matching_loss(model, clips, encode(prompts, drop), generator)

    folder = options.out / "final" / "models" / "source"
    save_model(model, run.train(loss), folder, size)
    summary = "the base model: 20 steps with guidance"
    write_card(folder / "model.json", summary=summary, parent=None, **model_card(size, 20, 2.0))


if __name__ == "__main__":
    main()
