"""Score everything in the output folder and write ``final/results.json``.

Prompt accuracy (shape, colour, direction, background) by the classifier, on seen and on held-out prompts; the
Frechet distance of classifier features to renderings of the same prompts; P(taught) for each LoRA on the source, and
what is left of it when the file is put on a target as it is ("direct reuse").
"""

import argparse
import json
import math
from pathlib import Path

import torch
from classifier import ATTRIBUTES, LOOKS, ClipClassifier, load_classifier
from common import draw, load_model, prompt_pool, solve
from torch import Tensor, nn

from loraport.zoo import world
from loraport.zoo.attention import FrameCausalProcessor
from loraport.zoo.sampler import load_lora, remove_lora

LORAS = ("noir", "outline", "stripe", "ring", "zigzag")
HIDDEN = {"noir": ("colour", "background"), "outline": ("background",), "stripe": ("colour", "background")}


def frechet(sampled: Tensor, real: Tensor) -> float:
    """Frechet distance of Gaussian fits to features [n, d], in units of the spread of the real ones.

    ``(|mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2))) / tr(C')``: 1 is as far away as real clips are from their mean.
    """
    first, second = sampled.double(), real.double()
    a, b = first.T.cov(), second.T.cov()
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    distance = (first.mean(0) - second.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross
    return (distance / b.trace()).item()


@torch.inference_mode()
def score(judge: ClipClassifier, clips: Tensor, prompts: Tensor, style: str) -> dict[str, float]:
    """Accuracy of each attribute, the probability of what the style adds, and the distance to renderings of it."""
    clips = clips.clamp(-1, 1)
    logits = judge(clips)
    result = {
        name: (logits[name].argmax(1) == prompts[:, column]).float().mean().item()
        for column, name in enumerate(ATTRIBUTES)
        if name not in HIDDEN.get(style, ())
    }
    for name in LOOKS[1:]:
        result[f"P({name})"] = logits["look"].softmax(1)[:, LOOKS.index(name)].mean().item()
    for name in ("ring", "zigzag"):
        result[f"P({name})"] = logits[name].softmax(1)[:, 1].mean().item()
    real = world.render(prompts.repeat(8, 1), style=style, generator=torch.Generator().manual_seed(1))
    result["frechet"] = frechet(judge.features(clips), judge.features(real))
    return {name: round(value, 4) for name, value in result.items()}


def set_causal(model: nn.Module) -> None:
    _, high, wide = model.config.patch_size
    for block in model.blocks:
        block.attn1.set_processor(FrameCausalProcessor((world.SIZE // high) * (world.SIZE // wide)))


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """The matrices that LoRAs act on, by their name without PEFT's wrapping."""
    return {
        name.replace(".base_layer", ""): value.detach().clone()
        for name, value in model.named_parameters()
        if value.ndim == 2 and name.startswith("blocks.") and "lora_" not in name
    }


def drift(model: nn.Module, source: dict[str, Tensor]) -> float:
    """Relative norm of the change of the matrices that LoRAs act on."""
    change = sum((value - source[name]).square().sum() for name, value in matrices(model).items())
    return math.sqrt(change / sum(value.square().sum() for value in source.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=192, help="clips per cell")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--loras", nargs="*", default=LORAS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    final, count = options.out / "final", options.count
    judge = load_classifier(final / "classifier.safetensors")
    path = final / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    generator = torch.Generator().manual_seed(999)
    noise = torch.randn(count, world.CHANNELS, world.FRAMES, world.SIZE, world.SIZE, generator=generator)
    prompts = {name: draw(prompt_pool(held), count, generator) for name, held in (("seen", False), ("held-out", True))}
    circles = prompts["held-out"].clone()
    circles[:, 0] = 0
    source = load_model(final / "models" / "source")
    origin = matrices(source)

    def cell(key: str, model: nn.Module, which: Tensor, steps: int, guidance: float, style: str = "base") -> None:
        clips = solve(model, which, noise, steps=steps, guidance=guidance, every=steps)[:, -1]
        results[key] = score(judge, clips, which, style)
        path.write_text(json.dumps(results, indent=1))
        print(key, results[key], flush=True)

    def all_cells(name: str, model: nn.Module, steps: int, guidance: float) -> None:
        for part, which in prompts.items():
            cell(f"{name} | {part}", model, which, steps, guidance)
        for lora in options.loras:
            file = final / "loras" / f"{lora}.safetensors"
            if file.exists():
                load_lora(model, file)
                which = circles if lora == "ring" else prompts["held-out"]
                cell(f"{name} + {lora}", model, which, steps, guidance, lora)
                remove_lora(model)

    for part, which in prompts.items():
        real = world.render(which, generator=torch.Generator().manual_seed(2))
        results[f"renderings | {part}"] = score(judge, real, which, "base")
    wanted = options.only or ("source", "source-4", "step", "step-strong", "causal", "distill-lora")
    if "source" in wanted:
        all_cells("source", source, 20, 3.0)
    if "source-4" in wanted:
        for part, which in prompts.items():
            cell(f"source, 4 steps, no guidance | {part}", source, which, 4, 1.0)
    for name in ("step", "step-strong", "causal"):
        if name in wanted and (final / "models" / name).exists():
            model = load_model(final / "models" / name)
            results[f"{name} drift"] = round(drift(model, origin), 4)
            if name == "causal":
                set_causal(model)
            all_cells(name, model, 4, 1.0)
    distillation = final / "models" / "distill-lora" / "lora.safetensors"
    if "distill-lora" in wanted and distillation.exists():
        load_lora(source, distillation)
        source.fuse_lora()
        source.unload_lora()
        results["distill-lora drift"] = round(drift(source, origin), 4)
        all_cells("distill-lora", source, 4, 1.0)
    path.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
