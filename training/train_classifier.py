"""Train the clip classifier on renderings of every prompt in every variant, blurred and noised as samples are."""

import argparse
from pathlib import Path

import torch
from common import Run, Schedule, draw
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from loraport.evaluate.judge import HEADS, LOOKS, ClipClassifier
from loraport.evaluate.tasks import ATTRIBUTES, TASKS
from loraport.zoo import world

CELLS = 3 * 2 * 2  # what the convolutions leave of 6 x 16 x 16


def labelled_batch(per_variant: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Clips of all variants and their labels; -100 marks a question that a variant does not answer."""
    pool = world.prompt_indices(world.all_prompts())
    clips, labels = [], {name: [] for name in HEADS}
    for variant in world.STYLES:
        count = per_variant * (3 if variant == "base" else 1)
        prompts = draw(pool, count, generator)
        clips.append(world.render(prompts, style=variant, generator=generator))
        for column, name in enumerate(ATTRIBUTES):
            hidden = variant in TASKS and name in TASKS[variant].hidden
            labels[name].append(torch.full((count,), -100) if hidden else prompts[:, column])
        look = LOOKS.index(variant) if variant in LOOKS else 0
        labels["look"].append(torch.full((count,), look))
        labels["ring"].append(((prompts[:, 0] == 0) & (variant == "ring")).long())
        labels["zigzag"].append(torch.full((count,), int(variant == "zigzag")))
    return torch.cat(clips), {name: torch.cat(parts) for name, parts in labels.items()}


def degrade(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Random blur, gain and noise, so that the answers do not hang on the renderer's crispness."""
    batch = len(clips)
    blurred = functional.avg_pool3d(clips, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    share = torch.rand(batch, 1, 1, 1, 1, generator=generator)
    gain = 0.85 + 0.3 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
    level = 0.25 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
    noise = torch.randn(clips.shape, generator=generator)
    return ((clips + share * (blurred - clips)) * gain + level * noise).clamp(-1.2, 1.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = ClipClassifier(CELLS)
    schedule = Schedule(options.steps, 3e-3, warmup=50, decay=options.steps // 2)
    run = Run("classifier", options.out, dict(model.named_parameters()), schedule, options.seed, weight_decay=0.01)

    def loss(generator: torch.Generator) -> Tensor:
        clips, labels = labelled_batch(12, generator)
        _, logits = model(degrade(clips, generator))
        return sum(functional.cross_entropy(logits[name], labels[name]) for name in labels)

    model.load_state_dict(run.train(loss))
    (options.out / "final").mkdir(exist_ok=True)
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, options.out / "final" / "classifier.safetensors")
    clips, labels = labelled_batch(200, torch.Generator().manual_seed(options.seed + 1))
    with torch.no_grad():
        _, logits = model.eval()(clips)
    run.log(
        accuracy={
            name: round((logits[name].argmax(1) == answer)[answer >= 0].float().mean().item(), 4)
            for name, answer in labels.items()
        }
    )


if __name__ == "__main__":
    main()
