"""How good the models themselves are: writes ``final/results.json``.

Prompt accuracy by the judge, on prompts that training has seen and on held-out ones; the Frechet distance to renderings
of the same prompts; how far each target's matrices lie from the source's. What LoRAs do on them is measured by
``loraport evaluate --family OUT/final --judge OUT/final/classifier.safetensors``.
"""

import json
import math

import torch
from common import arguments, begin
from diffusers import WanTransformer3DModel
from torch import Generator, Tensor

from loraport.evaluate import statistics
from loraport.evaluate.estimates import Reference, frechet
from loraport.evaluate.family import Family, Model, open_family
from loraport.evaluate.judge import Judge, open_judge
from loraport.evaluate.networks import load_network
from loraport.evaluate.tasks import ATTRIBUTES
from loraport.sampling import tiny
from loraport.zoo import drawing, world
from loraport.zoo.catalogue import ClipSize

RENDERED = 8  # clips a prompt behind the Frechet distance


def score(judge: Judge, clips: Tensor, prompts: Tensor) -> dict[str, float]:
    """Accuracy of each attribute, the Frechet distance, and the motion in pixels a frame."""
    reading = judge.read(clips)
    clip = ClipSize(*clips.shape[-3:-1])
    real = judge.read(drawing.render(prompts.repeat(RENDERED, 1), generator=Generator().manual_seed(1), clip=clip))
    found = {name: reading.correct(name, prompts).mean().item() for name in ATTRIBUTES}
    found |= {name: values.mean().item() for name, values in reading.faults().items()}
    found["frechet"] = frechet(reading.features, Reference.of(real.features))
    found["motion"] = statistics.motion(clips).mean().item()
    return {name: round(value, 4) for name, value in found.items()}


def drift(model: WanTransformer3DModel, source: WanTransformer3DModel) -> dict[str, float]:
    """Change of the matrices of all blocks: relative norm, and the median of their rigidity (Eq. 1: of the singular
    values alone)."""
    origin = {name: value for name, value in source.named_parameters() if value.ndim == 2 and name.startswith("blocks")}
    moved = dict(model.named_parameters())
    change = sum((moved[name] - value).square().sum() for name, value in origin.items())
    rigidity = [
        (torch.linalg.svdvals(moved[name]) - torch.linalg.svdvals(value)).norm() / torch.linalg.matrix_norm(value)
        for name, value in origin.items()
    ]
    relative = math.sqrt(change / sum(value.square().sum() for value in origin.values()))
    return {"relative": round(relative, 4), "rigidity": round(float(torch.stack(rigidity).median()), 4)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=192, help="clips a cell")
    options = begin(parser)
    torch.set_default_device("cpu")  # only the networks go to the device: noise and renderings are the same on all
    final, count, clip = options.out / "final", options.count, options.size.clip
    family, judge = open_family(final), open_judge(final / "classifier.safetensors", clip)
    noise = tiny.noise(range(5_000_000, 5_000_000 + count), clip)
    results: dict[str, dict] = {}
    for held_out in (False, True):
        known = [p for p in world.draw_prompts(len(world.all_prompts()), seed=4) if p.held_out == held_out]
        prompts = world.prompt_indices([known[i % len(known)] for i in range(count)])
        part = "held-out" if held_out else "seen"
        drawn = drawing.render(prompts, generator=Generator().manual_seed(2), clip=clip)
        results[f"renderings, {part}"] = score(judge, drawn, prompts)
        for label, model in _models(family):
            network = load_network(family, model).to(options.device)
            clips = tiny.sample(network, model.card.sampling, prompts, noise)
            results[f"{label}, {part}"] = score(judge, clips, prompts)
            print(label, part, results[f"{label}, {part}"], flush=True)
    origin = load_network(family, family.source)
    for target in family.targets:
        results[f"{target.name}, drift"] = drift(load_network(family, target), origin)
        print(target.name, results[f"{target.name}, drift"], flush=True)
    (final / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def _models(family: Family) -> list[tuple[str, Model]]:
    """All models as they want to be sampled, and the source sampled as its students are."""
    source = family.source
    few = ("source in the targets' steps", source.sampled_as(family.targets[0]))
    return [(source.name, source), few, *((target.name, target) for target in family.targets)]


if __name__ == "__main__":
    main()
