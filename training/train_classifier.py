"""Train the clip classifier on renderings of every prompt in every variant, blurred and noised as samples are."""

import torch
from common import Run, Schedule, begin, draw, plan_of, seeded, training_arguments
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from loraport.evaluate.judge import HEADS, LOOKS, ClipClassifier, cells
from loraport.evaluate.tasks import ATTRIBUTES, TASKS
from loraport.zoo import drawing, world
from loraport.zoo.catalogue import ClipSize


def labelled_batch(
    per_variant: int, clip: ClipSize, generator: torch.Generator, faults: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clips of all variants, some of them faulty, and their labels; -100 where a clip does not answer."""
    pool = world.prompt_indices(world.all_prompts())
    clips, labels = [], {name: [] for name in HEADS}
    for variant in world.STYLES:
        count = per_variant * (3 if variant == "base" else 1)
        prompts = draw(pool, count, generator)
        copies = torch.multinomial(torch.tensor([0.15, 0.6, 0.25]), count, True, generator=generator)
        if not faults:
            copies = torch.ones_like(copies)
        clips.append(drawing.render(prompts, style=variant, generator=generator, copies=copies, clip=clip))
        for column, name in enumerate(ATTRIBUTES):
            hidden = variant in TASKS and name in TASKS[variant].hidden
            known = prompts[:, column] if name == "background" else torch.where(copies == 0, -100, prompts[:, column])
            labels[name].append(torch.full((count,), -100) if hidden else known)
        look = LOOKS.index(variant) if variant in LOOKS else 0
        labels["look"].append(torch.full((count,), look))
        ring = ((prompts[:, 0] == 0) & (variant == "ring")).long()
        labels["ring"].append(torch.where((copies == 0) & (prompts[:, 0] == 0), -100, ring))
        labels["zigzag"].append(torch.where(copies == 0, -100, int(variant == "zigzag")))
        labels["copies"].append(copies)
        for name in ("ghost", "blurred"):  # see `haunt` and `degrade`
            labels[name].append(torch.zeros(count, dtype=torch.long))
        if faults:
            clips[-1], share = haunt(clips[-1], prompts, variant, generator)
            labels["copies"][-1] = torch.where(share > 0, -100, copies)
            labels["ghost"][-1] = torch.where(share > 0.2, 1, torch.where(share > 0, -100, 0))
    return torch.cat(clips), {name: torch.cat(parts) for name, parts in labels.items()}


def haunt(clips: Tensor, prompts: Tensor, variant: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Let another clip of the same prompt show through in a third of them, by up to a half; and by how much."""
    share = 0.5 * torch.rand(len(clips), generator=generator)
    share = torch.where(torch.rand(len(clips), generator=generator) < 1 / 3, share, 0.0)
    other = drawing.render(prompts, style=variant, generator=generator, clip=ClipSize(*clips.shape[-3:-1]))
    return torch.lerp(clips, other, share[:, None, None, None, None]), share


def degrade(clips: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random blur, gain and noise, so that answers do not hang on the renderer's crispness; and labels of blur."""
    batch = len(clips)
    blurred = functional.avg_pool3d(clips, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    share = torch.rand(batch, 1, 1, 1, 1, generator=generator)
    gain = 0.85 + 0.3 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
    level = 0.2 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
    noise = torch.randn(clips.shape, generator=generator)
    label = torch.where(share > 0.6, 1, torch.where(share < 0.3, 0, -100)).flatten()
    return ((clips + share * (blurred - clips)) * gain + level * noise).clamp(-1.2, 1.2), label


def main() -> None:
    options = begin(training_arguments(__doc__))
    clip, plan, seed = options.size.clip, plan_of("classifier", options), options.seed or 5
    torch.manual_seed(seed)
    model = ClipClassifier(cells(clip))
    schedule = Schedule(plan.steps, plan.rate, warmup=50, decay=plan.steps // 2)
    run = Run("classifier", options.out, dict(model.named_parameters()), schedule, seed, weight_decay=0.01)

    def loss(generator: torch.Generator) -> Tensor:
        clips, labels = labelled_batch(plan.batch, clip, generator)
        clips, labels["blurred"] = degrade(clips, generator)
        _, logits = model(clips)
        return sum(functional.cross_entropy(logits[name], labels[name]) for name in labels)

    model.load_state_dict(run.train(loss))
    (options.out / "final").mkdir(exist_ok=True)
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, options.out / "final" / "classifier.safetensors")
    clips, labels = labelled_batch(200, clip, seeded(seed + 1), faults=False)
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
