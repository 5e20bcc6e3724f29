"""What a comparison or a probe found, as plain values."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loraport.comparing.prompts import Prompt
from loraport.comparing.variants import Variant
from loraport.metrics.measures import ClipMeasure
from loraport.sampling.schedule import SamplingSettings


@dataclass(frozen=True)
class ClipMean:
    """A mean over clips.

    Attributes:
        mean: over prompts, of the means of their seeds.
        low, high: 95 % interval; None where there is a single prompt or, of a single prompt, a single clip.
        clips: how many have this number.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    clips: int = 1


@dataclass(frozen=True)
class CompareReport:
    """The outcome of a comparison.

    Attributes:
        page: the HTML file.
        folder: where everything is.
        family: title of the family.
        prompts: what was asked for, with the images that the clips begin with.
        seeds: number of seeds per prompt.
        variants: the variants, in order.
        measures: measures of the table, in order.
        scores: key of the variant -> key of the measure -> score.
        clips: (variant, prompt, seed) -> numbers of that clip.
        sampling: how source and target were sampled.
        known: what was known of the sampling of the target, and from whom; "" if the user set everything.
        models: source and target, as they were named.
        files: LoRA file -> its SHA-256.
        fps: frames per second of a video, as its measures use it.
        size: frames, height and width of a clip.
        negative: the negative prompt; None for the pipeline's own.
        precision: number format of the weights.
        device: where the clips were made.
        made: clips made in this run.
        found: clips that already existed.
        not_measured: what is not measured for lack of a package -> what brings it.
        warnings: sentences for the user.
        two_experts: whether the models are Wan2.2 with two transformers.
    """

    page: Path
    folder: Path
    family: str
    prompts: tuple[Prompt, ...]
    seeds: int
    variants: tuple[Variant, ...]
    measures: tuple[ClipMeasure, ...]
    scores: dict[str, dict[str, ClipMean]]
    clips: dict[tuple[str, int, int], dict[str, float]]
    sampling: dict[str, SamplingSettings]
    known: str
    models: dict[str, str]
    files: dict[Path, str]
    fps: float
    size: tuple[int, int, int]
    negative: str | None
    precision: str
    device: str
    made: int
    found: int
    not_measured: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    two_experts: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "page": str(self.page),
            "folder": str(self.folder),
            "family": self.family,
            "prompts": [prompt.text for prompt in self.prompts],
            "images": [
                None if (image := prompt.image) is None else {"file": str(image.file), "sha256": image.digest}
                for prompt in self.prompts
            ],
            "seeds": self.seeds,
            "variants": [
                {
                    "key": one.key,
                    "label": one.label,
                    "model": one.role,
                    "lora": None if one.lora is None else str(one.lora.named),
                    "experts": {placed.expert: str(placed.file) for placed in one.placed} if self.two_experts else None,
                    "strength": one.strength,
                    "scores": {key: asdict(score) for key, score in self.scores[one.key].items()},
                }
                for one in self.variants
            ],
            "measures": {
                one.key: {"title": one.title, "help": one.help, "better": one.better} for one in self.measures
            },
            "clips": [
                {"variant": variant, "prompt": prompt, "seed": seed, **numbers}
                for (variant, prompt, seed), numbers in self.clips.items()
            ],
            "sampling": {role: said(settings) for role, settings in self.sampling.items()},
            "known": self.known,
            "models": self.models,
            "files": {str(file): digest for file, digest in self.files.items()},
            "fps": self.fps,
            "size": list(self.size),
            "negative": self.negative,
            "precision": self.precision,
            "device": self.device,
            "made": self.made,
            "found": self.found,
            "not_measured": self.not_measured,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class ProbeReport:
    """The dose of a pair.

    Attributes:
        file: the probe; with two transformers, the one for the high-noise expert.
        file_low: the probe for the low-noise expert; None with one transformer.
        family: title.
        layer: canonical name of the layer that it changes.
        colour: its name.
        spread: standard deviation of what should be 1 everywhere; the colour is as uneven. With two transformers, the
            larger one.
        source, target: share of the asked colour that the mean of the clip takes.
        aside: for both, the mean change in directions other than that of the colour, in the same unit.
        ratio: target over source: the dose.
        known: what was known of the sampling of the target; "" if the user set everything.
    """

    file: Path
    family: str
    layer: str
    colour: str
    spread: float
    source: float
    target: float
    aside: tuple[float, float]
    ratio: float
    known: str = ""
    file_low: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        low = None if self.file_low is None else str(self.file_low)
        return {**vars(self), "file": str(self.file), "file_low": low, "aside": list(self.aside)}


def said(settings: SamplingSettings) -> dict[str, Any]:
    """What of the sampling was said or known; the rest is the pipeline's own."""
    values = {name: getattr(settings, name) for name in ("steps", "times", "shift", "guidance", "sampler")}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
