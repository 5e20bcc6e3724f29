"""Sampling and scoring, each thing once: what was scored before is found by the bytes that went into it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from loraport.evaluate import statistics
from loraport.evaluate.estimates import Reference
from loraport.evaluate.family import Family, Model, digest
from loraport.evaluate.judge import Judge, JudgeReading
from loraport.evaluate.looks import distance_between
from loraport.evaluate.networks import load_network
from loraport.evaluate.statistics import TaughtStatistic
from loraport.evaluate.tasks import LoraTask, draw_prompts
from loraport.files import file_digest
from loraport.sampling import tiny
from loraport.store.index import entry_key
from loraport.store.store import Store
from loraport.zoo import drawing, world

SAMPLING = 3
"""Part of every cache key: raised when the sampler changes."""
_RENDERED = 8  # real clips per prompt behind the Frechet distance
BATCH = 16
LoraAt = tuple[Path, float]
"""A LoRA file and its strength."""
Networks = dict[str, tuple[WanTransformer3DModel, dict[str, Tensor]]]
"""By the model's name: the network, and its weights without any LoRA."""


@dataclass(frozen=True)
class Scale:
    """How much is sampled: `prompts` different ones, each with `seeds` starting noises."""

    prompts: int = 64
    seeds: int = 3
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ClipSet:
    """The scores of one way of making the clips.

    Attributes:
        scores: by name, one value a clip: `taught` (judge), `statistic` (no learning), `accuracy` and the single
            attributes, `faults` (expected number of them) and the single ones, `motion`.
        features: the judge's. clips: all of them as bytes.
    """

    scores: Mapping[str, Float[Tensor, "seeds p"]]
    features: Float[Tensor, "seeds p d"]
    clips: UInt8[Tensor, "seeds p 3 f h w"]

    def distance_to(self, other: "ClipSet") -> Float[Tensor, "seeds p"]:
        """Root mean square pixel difference (0 to 1), clip by clip: same prompt, same noise."""
        a, b = (_unpacked(each.clips.flatten(0, 1)) for each in (self, other))
        return distance_between(a, b).view(self.clips.shape[:2])


@dataclass(eq=False)
class ClipSampler:
    """One task's prompts, noise and references, and the clips of any model with any LoRA file on them.

    Args:
        family, task, judge, scale: what is measured, and how.
        store: keeps clips, keyed by the bytes of model and LoRA, the prompts and the noise.
        device: where the networks run; noise, renderings and scores are the CPU's.
        networks: that are loaded; samplers of one family may share them.
    """

    family: Family
    task: LoraTask
    judge: Judge
    scale: Scale
    store: Store
    device: str = "cpu"
    networks: Networks = field(default_factory=dict)
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.prompts = draw_prompts(self.task, self.scale.prompts, seed=self.scale.seed)
        self.indices: Int[Tensor, "p 4"] = world.prompt_indices(self.prompts)
        per_seed, count = 1_000_000, len(self.prompts)
        first = self.scale.seed * 1_000_000_000
        self.noise_seeds = [first + s * per_seed + i for s in range(self.scale.seeds) for i in range(count)]
        self.clip = self.family.source.card.clip
        self.statistic = TaughtStatistic.of(self.task, self.indices.repeat(self.scale.seeds, 1), self.clip)

    def clips(self, model: Model, *parts: LoraAt) -> ClipSet:
        """Sample, or look up, the clips of a model with LoRA files merged in, and score them.

        Args:
            model: as its card says it is sampled.
            parts: a LoRA file and its strength for each of equal parts of the steps, first to last; no LoRA if empty.
        """
        files = dict.fromkeys(file_digest(file) for file, _ in parts) or (None,)
        strengths = [strength for _, strength in parts]
        key = self._key(digest(model), *files, *(map(repr, strengths) if strengths not in ([], [1.0]) else ()))
        kept = self.store.get("clips", key)
        if kept is not None:
            return self._scored(kept["clips"])
        began = time.perf_counter()
        packed = _packed(self._sample(model, parts))
        self.seconds += time.perf_counter() - began
        self.store.put("clips", key, {"clips": packed})
        return self._scored(packed)

    def real(self) -> Reference:
        """What clips of these prompts in the taught variant look like to the judge."""
        return Reference.of(self._rendered(self.task.style, _RENDERED, seed=1)[0].features)

    def ceiling(self) -> ClipSet:
        """Renderings in the taught variant, scored as samples are: the best that any method could reach."""
        _, clips = self._rendered(self.task.style, self.scale.seeds, seed=2)
        return self._scored(_packed(clips))

    def _rendered(self, style: str, times: int, *, seed: int) -> tuple[JudgeReading, Tensor]:
        many = self.indices.repeat(times, 1)
        clips = drawing.render(many, style=style, generator=Generator().manual_seed(seed), clip=self.clip)
        return self.judge.read(clips), clips

    def _sample(self, model: Model, parts: Sequence[LoraAt]) -> Tensor:
        network, pristine = self._network(model)
        prompts, clips = self.indices.repeat(self.scale.seeds, 1), tiny.noise(self.noise_seeds, self.clip)
        steps = model.card.sampling.steps
        for number, (file, strength) in enumerate(parts):
            network.load_state_dict(pristine)
            tiny.merge_lora(network, file, strength=strength)
            if len(parts) > 1:
                for step in (step for step in range(steps) if step * len(parts) // steps == number):
                    clips = tiny.sample(network, model.card.sampling, prompts, clips, batch=BATCH, only=step)
        if len(parts) < 2:
            clips = tiny.sample(network, model.card.sampling, prompts, clips, batch=BATCH)
        network.load_state_dict(pristine)
        return clips

    def _network(self, model: Model) -> tuple[WanTransformer3DModel, dict[str, Tensor]]:
        if model.name not in self.networks:
            network = load_network(self.family, model).to(self.device)
            self.networks[model.name] = network, {k: v.clone() for k, v in network.state_dict().items()}
        return self.networks[model.name]

    def _scored(self, packed: UInt8[Tensor, "n 3 f h w"]) -> ClipSet:
        count, seeds = len(self.indices), self.scale.seeds
        prompts = self.indices.repeat(seeds, 1)
        clips = _unpacked(packed)  # scores are those of the pixels that are kept
        reading = self.judge.read(clips)
        scores = {name: reading.correct(name, prompts) for name in self.task.visible}
        scores["accuracy"] = torch.stack(list(scores.values())).mean(0)
        faults = reading.faults()
        scores |= faults
        scores["faults"] = torch.stack(list(faults.values())).sum(0)
        scores["taught"] = reading.taught(self.task.style)
        scores["statistic"] = self.statistic(clips)
        scores["motion"] = statistics.motion(clips)
        return ClipSet(
            {name: value.view(seeds, count) for name, value in scores.items()},
            reading.features.view(seeds, count, -1),
            packed.view(seeds, count, *packed.shape[1:]),
        )

    def _key(self, *parts: str | None) -> str:
        prompts = [prompt.text for prompt in self.prompts]
        return entry_key(
            {
                "version": SAMPLING,
                "torch": torch.__version__,
                "prompts": prompts,
                "noise": self.noise_seeds,
                "batch": BATCH,
                "size": list(self.clip),
                "models": parts,
            }
            | ({} if self.device == "cpu" else {"device": self.device.partition(":")[0]})
        )


def _packed(clips: Tensor) -> UInt8[Tensor, "n 3 f h w"]:
    """Clips in [-1, 1] as bytes."""
    return ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _unpacked(clips: Tensor) -> Float[Tensor, "n 3 f h w"]:
    return clips.float() / 127.5 - 1
