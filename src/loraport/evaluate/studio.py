"""Sampling and scoring, each thing once: what was scored before is found by the bytes that went into it."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file
from torch import Generator, Tensor

from loraport.containers.safetensors import write_safetensors
from loraport.evaluate import statistics
from loraport.evaluate.estimates import Reference
from loraport.evaluate.family import Family, Lora, Model, digest, file_digest, load_network, merge_lora
from loraport.evaluate.judge import Judge, Reading
from loraport.evaluate.looks import distance_between
from loraport.evaluate.statistics import TaughtStatistic
from loraport.evaluate.tasks import Task, draw_prompts
from loraport.sampling import tiny as sampler
from loraport.zoo import world

SAMPLING = 1
"""Part of every cache key: raised when the sampler changes."""
_RENDERED = 8  # real clips per prompt behind the Frechet distance
BATCH = 16


@dataclass(frozen=True)
class Scale:
    """How much is sampled: `prompts` different ones, each with `seeds` starting noises."""

    prompts: int = 64
    seeds: int = 3
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Take:
    """The scores of one way of making the clips.

    Attributes:
        scores: by name, one value a clip: `taught` (judge), `statistic` (no learning), `accuracy` and the single
            attributes, `motion` in pixels per frame.
        features: the judge's. clips: all of them as bytes.
    """

    scores: Mapping[str, Float[Tensor, "seeds p"]]
    features: Float[Tensor, "seeds p d"]
    clips: UInt8[Tensor, "seeds p 3 f h w"]

    def distance_to(self, other: "Take") -> Float[Tensor, "seeds p"]:
        """Root mean square pixel difference (0 to 1), clip by clip: same prompt, same noise."""
        a, b = (_unpacked(take.clips.flatten(0, 1)) for take in (self, other))
        return distance_between(a, b).view(self.clips.shape[:2])


@dataclass(eq=False)
class Studio:
    """One task's prompts, noise and references, and the clips of any model with any LoRA file on them.

    Args:
        family, task, judge, scale: what is measured, and how.
        cache: folder for clips, keyed by the bytes of model and LoRA, the prompts and the noise.
    """

    family: Family
    task: Task
    judge: Judge
    scale: Scale
    cache: Path
    seconds: float = 0.0
    _networks: dict[str, tuple[WanTransformer3DModel, dict[str, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prompts = draw_prompts(self.task, self.scale.prompts, seed=self.scale.seed)
        self.indices: Int[Tensor, "p 4"] = world.prompt_indices(self.prompts)
        per_seed, count = 1_000_000, len(self.prompts)
        first = self.scale.seed * 1_000_000_000
        self.noise_seeds = [first + s * per_seed + i for s in range(self.scale.seeds) for i in range(count)]
        self.statistic = TaughtStatistic.of(self.task, self.indices.repeat(self.scale.seeds, 1))

    def take(self, model: Model, lora: Path | None = None) -> Take:
        """Sample, or look up, the clips of a model with a LoRA file (or none) merged in, and score them."""
        key = self._key(digest(model), None if lora is None else file_digest(lora))
        file = self.cache / f"{key}.safetensors"
        if not file.is_file():
            began = time.perf_counter()
            clips = self._sample(model, lora)
            self.seconds += time.perf_counter() - began
            write_safetensors(file, {"clips": _packed(clips)}, {})
        return self._scored(load_file(file)["clips"])

    def real(self) -> Reference:
        """What clips of these prompts in the taught variant look like to the judge."""
        return Reference.of(self._rendered(self.task.style, _RENDERED, seed=1)[0].features)

    def ceiling(self) -> Take:
        """Renderings in the taught variant, scored as samples are: the best that any method could reach."""
        _, clips = self._rendered(self.task.style, self.scale.seeds, seed=2)
        return self._scored(_packed(clips))

    def _rendered(self, style: str, times: int, *, seed: int) -> tuple[Reading, Tensor]:
        many = self.indices.repeat(times, 1)
        clips = world.render(many, style=style, generator=Generator().manual_seed(seed))
        return self.judge.read(clips), clips

    def _sample(self, model: Model, lora: Path | None) -> Tensor:
        network, pristine = self._network(model)
        if lora is not None:
            merge_lora(network, lora)
        prompts = self.indices.repeat(self.scale.seeds, 1)
        clips = sampler.sample(network, model.card.sampling, prompts, sampler.draw_noise(self.noise_seeds), batch=BATCH)
        network.load_state_dict(pristine)
        return clips

    def _network(self, model: Model) -> tuple[WanTransformer3DModel, dict[str, Tensor]]:
        if model.name not in self._networks:
            network = load_network(self.family, model)
            self._networks[model.name] = network, {k: v.clone() for k, v in network.state_dict().items()}
        return self._networks[model.name]

    def _scored(self, packed: UInt8[Tensor, "n 3 f h w"]) -> Take:
        count, seeds = len(self.indices), self.scale.seeds
        prompts = self.indices.repeat(seeds, 1)
        clips = _unpacked(packed)  # scores are those of the pixels that are kept
        reading = self.judge.read(clips)
        scores = {name: reading.correct(name, prompts) for name in self.task.visible}
        scores["accuracy"] = torch.stack(list(scores.values())).mean(0)
        scores["taught"] = reading.taught(self.task.style)
        scores["statistic"] = self.statistic(clips)
        scores["motion"] = statistics.motion(clips)
        return Take(
            {name: value.view(seeds, count) for name, value in scores.items()},
            reading.features.view(seeds, count, -1),
            packed.view(seeds, count, *packed.shape[1:]),
        )

    def _key(self, *parts: str | None) -> str:
        prompts = [prompt.text for prompt in self.prompts]
        facts = [SAMPLING, prompts, self.noise_seeds, BATCH, [world.FRAMES, world.SIZE], torch.__version__, *parts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def open_studios(
    family: Family, loras: Sequence[Lora], tasks: Mapping[str, Task], judge: Judge, scale: Scale, cache: Path
) -> dict[str, Studio]:
    """One studio a LoRA; they share the networks."""
    networks: dict = {}
    return {lora.name: Studio(family, tasks[lora.style], judge, scale, cache, _networks=networks) for lora in loras}


def _packed(clips: Tensor) -> UInt8[Tensor, "n 3 f h w"]:
    """Clips in [-1, 1] as bytes."""
    return ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _unpacked(clips: Tensor) -> Float[Tensor, "n 3 f h w"]:
    return clips.float() / 127.5 - 1
