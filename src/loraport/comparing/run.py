"""The job: clips of all variants, one pipeline at a time, then the judging, then the page."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.comparing.clips import ClipFolder, file_digest, short
from loraport.comparing.opening import DeviceSetup, opened
from loraport.comparing.page import write_compare_page
from loraport.comparing.pairs import find_files
from loraport.comparing.rendering import Shot, made_of, render, set_sampling, with_loras
from loraport.comparing.report import CompareReport
from loraport.comparing.scoring import scores_of
from loraport.comparing.settings import CompareSettings
from loraport.comparing.sides import Side, find_sides
from loraport.comparing.variants import REFERENCE, Variant, list_variants
from loraport.engine.events import Listener, Remarked, Step, Warned, ignore
from loraport.errors import FileError, UsageError
from loraport.files import read_text, write_json
from loraport.metrics.judging import Judges, JudgeWeights
from loraport.sampling.folders import need_diffusers
from loraport.sampling.schedule import NO_SETTINGS, SamplingSettings

PAGE, NUMBERS, CLIPS = "index.html", "compare.json", "clips"
MOST_PROMPTS = 2**20  # bytes of the file


PathLike = str | Path
DEFAULTS = CompareSettings()


def compare(
    lora: PathLike,
    *,
    source: PathLike,
    target: PathLike | None = None,
    target_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    transferred: PathLike | Sequence[PathLike] = (),
    lora_low: PathLike | None = None,
    target_lora_low: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    transferred_low: PathLike | Sequence[PathLike] = (),
    output: PathLike,
    prompts: PathLike | Sequence[str],
    settings: CompareSettings = DEFAULTS,
    source_sampling: SamplingSettings = NO_SETTINGS,
    target_sampling: SamplingSettings = NO_SETTINGS,
    device: str = "auto",
    on_event: Listener = ignore,
) -> CompareReport:
    """Make the same clips by every variant, measure them, and write a page; the same call again makes what is missing.

    Args:
        lora: the LoRA that was trained on the source.
        source: diffusers folder of the pipeline, or a hub id.
        target: the same; or a folder of its transformer (of two experts, with both), or its file, which takes the
            other parts of the source.
        target_lora: distillation LoRAs that make the target, of the source where no target is given.
        transferred: files made from the LoRA for the target.
        lora_low: of Wan2.2 with two experts the LoRA for the low-noise one, where `lora` is for the other; without it
            what is named after an expert (`style_high_noise`) takes the file beside it that is named after the other,
            and another one is loaded into the high-noise expert alone.
        target_lora_low: distillation LoRAs of the low-noise expert, where `target_lora` do not serve both.
        transferred_low: those of `transferred` for the low-noise expert, in the same order, as `lora_low`.
        output: a folder.
        prompts: a text file with a prompt a line, or the texts.
        settings: which clips, and what to judge by.
        source_sampling: how the source is sampled.
        target_sampling: how the target is; what is known of it is filled in.
        device: auto, cpu, cuda, cuda:1 or mps.
        on_event: called with every event.

    Raises:
        LoraportError: see `loraport.errors`. Clips that are finished stay in the folder.
    """
    need_diffusers()
    texts = read_prompts(prompts)
    place = DeviceSetup.of(device, settings.precision, settings.offload)
    sampled = (source_sampling, target_sampling)
    sides = find_sides(source, target, added_loras(target_lora), *sampled, added_loras(target_lora_low))
    two = sides["source"].model.two_experts
    others = (_several(transferred), _several(transferred_low))
    loras = find_files(lora, lora_low, *others, two_experts=two)
    variants = list_variants(loras[0], loras[1:], settings.strengths, source_alone=settings.source_alone)
    sides["target"].tell(on_event)
    for note in (one.note for one in loras if one.note):
        on_event(Remarked(note))
    weights = JudgeWeights(**{name: None if path is None else Path(path) for name, path in settings.weights().items()})
    Judges.open(weights)  # what cannot judge is said before hours of work
    gc.collect()
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise UsageError("the output is a file, not a folder", where=str(folder), fix="name another with --output")
    clips = ClipFolder(folder / CLIPS)
    digests = {file: file_digest(file) for one in loras for file in one.by_expert.values()}
    models = {role: side.digest(place) for role, side in sides.items()}
    shots = {(p, s): _shot(text, s, settings) for p, text in enumerate(texts) for s in range(settings.seeds)}
    names = {
        (variant.key, p, s): _made_of(variant, models[variant.role], sides[variant.role], digests, shot)
        for variant in variants
        for (p, s), shot in shots.items()
    }
    missing = {name for name, made in names.items() if clips.read(made) is None}
    done = 0
    for role, side in sides.items():
        own = [v for v in variants if v.role == role and any((v.key, *at) in missing for at in shots)]
        if not own:
            continue
        on_event(Step(f"loading the {role}", done + 1, len(missing)))
        with opened(side.model, place) as pipeline:
            set_sampling(pipeline, side.settings)
            for variant in own:
                with with_loras(pipeline, side.model.family, [*side.placed, *variant.placed]):
                    for at, shot in shots.items():
                        if (name := (variant.key, *at)) in missing:
                            done += 1
                            on_event(Step(f"{variant.label}, prompt {at[0] + 1}, seed {at[1]}", done, len(missing)))
                            clips.write(names[name], render(pipeline, side.model.family, side.settings, shot))
            del pipeline
    judges = Judges.open(weights, str(place.device))
    fps = settings.fps or float(sides["source"].model.family.diffusers.fps)
    judged = _judge(judges, clips, names, variants, texts, settings.seeds, fps, on_event)
    video = any(len(_read(clips, made)) > 1 for made in list(names.values())[:1])
    warnings = _warnings(len(texts), settings.seeds)
    for sentence in warnings:
        on_event(Warned(sentence))
    report = CompareReport(
        page=folder / PAGE,
        folder=folder,
        family=sides["source"].model.family.title,
        prompts=texts,
        seeds=settings.seeds,
        variants=variants,
        measures=judges.measures(video=video),
        scores={
            v.key: scores_of({(p, s): judged[v.key, p, s] for p, s in shots}, len(texts), settings.seeds)
            for v in variants
        },
        clips=judged,
        sampling={role: side.settings for role, side in sides.items()},
        known=sides["target"].known,
        models={role: side.name for role, side in sides.items()},
        files=digests,
        fps=fps,
        made=len(missing),
        found=len(names) - len(missing),
        not_measured=judges.missing(),
        warnings=warnings,
        two_experts=two,
    )
    write_json(folder / NUMBERS, report.to_json())
    write_compare_page(report, lambda key, p, s: _read(clips, names[key, p, s]))
    return report


def read_prompts(given: PathLike | Sequence[str]) -> tuple[str, ...]:
    """The texts: as they are, or of a file with one a line. Raises UsageError, FileError."""
    file = Path(given) if isinstance(given, str | Path) else None
    lines: Sequence[str]
    if isinstance(given, str | Path):
        lines = read_text(Path(given), "file of prompts", most=MOST_PROMPTS).splitlines()
    else:
        lines = given
    texts = tuple(str(line).strip() for line in lines if str(line).strip())
    if not texts:
        raise UsageError("there is no prompt", where=None if file is None else str(file))
    if len(set(texts)) != len(texts):
        raise UsageError("a prompt is there twice", values=next(t for t in texts if texts.count(t) > 1)[:200])
    return texts


def _several(given: PathLike | Sequence[PathLike]) -> Sequence[PathLike]:
    return [given] if isinstance(given, str | Path) else given


def _shot(text: str, seed: int, settings: CompareSettings) -> Shot:
    return Shot(text, seed, settings.negative, settings.height, settings.width, settings.frames)


def _made_of(variant: Variant, model: str, side: Side, digests: Mapping[Path, str], shot: Shot) -> dict[str, Any]:
    loras = {one.key(short(digests[one.file])): one.strength for one in variant.placed}
    return made_of(model, loras, side.settings, shot)


def _read(clips: ClipFolder, made: Mapping[str, Any]) -> UInt8[np.ndarray, "f h w 3"]:
    frames = clips.read(made)
    if frames is None:
        raise FileError(
            "a clip is gone that was there before", where=str(clips.path(made)), fix="run the same command again"
        )
    return frames


def _judge(
    judges: Judges,
    clips: ClipFolder,
    names: Mapping[tuple[str, int, int], dict[str, Any]],
    variants: Sequence[Variant],
    texts: Sequence[str],
    seeds: int,
    fps: float,
    on_event: Listener,
) -> dict[tuple[str, int, int], dict[str, float]]:
    """The numbers of each clip; a clip of another size than the reference is an error of its own."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    done, total = 0, len(names)
    for p, text in enumerate(texts):
        for s in range(seeds):
            reference = judges.look(_read(clips, names[REFERENCE, p, s]), fps)
            for variant in variants:
                done += 1
                on_event(Step("measuring", done, total))
                frames = _read(clips, names[variant.key, p, s])
                if frames.shape != reference.clip.shape:
                    raise UsageError(
                        "source and target made clips of different sizes", where=variant.label,
                        values=f"{_by(reference.clip.shape)}, {_by(frames.shape)} (frames x height x width)",
                        fix="say the size for both: --frames, --height, --width",
                    )  # fmt: skip
                own = variant.key == REFERENCE
                look = reference if own else judges.look(frames, fps)
                found[variant.key, p, s] = judges.judge(look, None if own else reference, text, fps)
    return found


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[:3]))


def _warnings(prompts: int, seeds: int) -> tuple[str, ...]:
    if prompts * seeds == 1:
        return ("One prompt and one seed: no number here has an interval, and another seed may turn the order round.",)
    if prompts < 5:
        what = f"{prompts} prompts are few" if prompts > 1 else "One prompt is one case"
        return (f"{what}: the intervals are too narrow, and say nothing of other prompts.",)
    return ()
