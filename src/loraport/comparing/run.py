"""The job: clips of all variants, one pipeline at a time, then the judging, then the page."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from loraport.comparing.clips import ClipFolder, short
from loraport.comparing.images import said_of_shapes
from loraport.comparing.opening import DeviceSetup, clip_size, opened, said_of_unused
from loraport.comparing.page import write_compare_page
from loraport.comparing.plan import ComparePlan
from loraport.comparing.rendering import Shot, as_large, made_of, render, set_sampling, with_loras
from loraport.comparing.report import CompareReport
from loraport.comparing.scoring import scores_of
from loraport.comparing.variants import REFERENCE
from loraport.engine.events import Listener, Remarked, Step, Warned
from loraport.errors import FileError, UsageError
from loraport.files import file_digest, write_json
from loraport.metrics.judging import Judges

PAGE, NUMBERS, CLIPS = "index.html", "compare.json", "clips"
At = tuple[int, int]
"""Number of a prompt, and a seed."""


def carry_out(plan: ComparePlan, device: str, on_event: Listener) -> CompareReport:
    """Make the clips that are missing, measure all, and write the page.

    Args:
        plan: what is to be made.
        device: auto, cpu, cuda, cuda:1 or mps.
        on_event: called with every event.

    Raises:
        LoraportError: see `loraport.errors`. Clips that are finished stay in the folder.
    """
    settings, sides = plan.settings, plan.sides
    place = DeviceSetup.of(device, settings.precision, settings.offload)
    sides["target"].tell(on_event)
    for note in (one.note for one in plan.loras if one.note):
        on_event(Remarked(note))
    size = clip_size(sides["source"].model, settings) if plan.with_images else None
    stretched = said_of_shapes([prompt.image for prompt in plan.prompts if prompt.image is not None], size)
    unused = said_of_unused((one.model for one in sides.values()), settings, with_image=plan.with_images)
    for sentence in (*stretched, *unused):
        on_event(Warned(sentence))
    Judges.open(plan.weights)  # what cannot judge is said before hours of work
    gc.collect()
    clips = ClipFolder(plan.folder / CLIPS)
    digests = {file: file_digest(file) for one in plan.loras for file in one.by_expert.values()}
    shots = {
        (p, s): Shot(prompt, s, settings.negative, settings.height, settings.width, settings.frames)
        for p, prompt in enumerate(plan.prompts)
        for s in range(settings.seeds)
    }
    names = _names(plan, place, digests, shots)
    missing = {name for name, made in names.items() if clips.read(made) is None}
    _make(plan, place, {name: names[name] for name in names if name in missing}, shots, clips, on_event)
    judges = Judges.open(plan.weights, str(place.device))
    fps = settings.fps or float(sides["source"].model.family.diffusers.fps)
    judged = _judge(judges, clips, names, plan, fps, on_event)
    frames, height, width, _ = _read(clips, next(iter(names.values()))).shape
    few = _few(len(plan.prompts), settings.seeds)
    for sentence in few:
        on_event(Warned(sentence))
    report = CompareReport(
        page=plan.folder / PAGE,
        folder=plan.folder,
        family=sides["source"].model.family.title,
        prompts=plan.prompts,
        seeds=settings.seeds,
        variants=plan.variants,
        measures=judges.measures(video=frames > 1, image=plan.with_images),
        scores={
            v.key: scores_of({(p, s): judged[v.key, p, s] for p, s in shots}, len(plan.prompts), settings.seeds)
            for v in plan.variants
        },
        clips=judged,
        sampling={role: side.settings for role, side in sides.items()},
        known=sides["target"].known,
        models={role: side.name for role, side in sides.items()},
        files=digests,
        fps=fps,
        size=(frames, height, width),
        negative=settings.negative,
        precision=str(place.dtype).removeprefix("torch."),
        device=str(place.device),
        made=len(missing),
        found=len(names) - len(missing),
        not_measured=judges.missing(),
        warnings=(*few, *stretched, *unused),
        two_experts=sides["source"].model.two_experts,
    )
    write_json(plan.folder / NUMBERS, report.to_json())
    write_compare_page(report, lambda key, p, s: _read(clips, names[key, p, s]))
    return report


def _names(
    plan: ComparePlan, place: DeviceSetup, digests: Mapping[Path, str], shots: Mapping[At, Shot]
) -> dict[tuple[str, int, int], dict[str, Any]]:  # fmt: skip
    """What each clip is made of, by variant, prompt and seed."""
    models = {role: side.digest(place) for role, side in plan.sides.items()}
    made = {}
    for variant in plan.variants:
        loras = {one.key(short(digests[one.file])): one.strength for one in variant.placed}
        settings = plan.sides[variant.role].settings
        for (p, s), shot in shots.items():
            made[variant.key, p, s] = made_of(models[variant.role], loras, settings, shot)
    return made


def _make(
    plan: ComparePlan,
    place: DeviceSetup,
    missing: Mapping[tuple[str, int, int], dict[str, Any]],
    shots: Mapping[At, Shot],
    clips: ClipFolder,
    on_event: Listener,
) -> None:
    """The clips that are missing, each pipeline loaded once."""
    done = 0
    for role, side in plan.sides.items():
        own = [v for v in plan.variants if v.role == role and any((v.key, *at) in missing for at in shots)]
        if not own:
            continue
        on_event(Step(f"loading the {role}", done + 1, len(missing)))
        with opened(side.model, place, with_image=plan.with_images) as pipeline:
            set_sampling(pipeline, side.settings)
            for variant in own:
                with with_loras(pipeline, side.model.family, [*side.placed, *variant.placed]):
                    for at, shot in shots.items():
                        if (name := (variant.key, *at)) in missing:
                            done += 1
                            on_event(Step(f"{variant.label}, prompt {at[0] + 1}, seed {at[1]}", done, len(missing)))
                            clips.write(missing[name], render(pipeline, side.model.family, side.settings, shot))
            del pipeline


def _read(clips: ClipFolder, made: Mapping[str, Any]) -> UInt8[np.ndarray, "f h w 3"]:
    frames = clips.read(made)
    if frames is None:
        raise FileError(
            "a clip that existed before is gone", where=str(clips.path(made)), fix="run the same command again"
        )
    return frames


def _judge(
    judges: Judges,
    clips: ClipFolder,
    names: Mapping[tuple[str, int, int], dict[str, Any]],
    plan: ComparePlan,
    fps: float,
    on_event: Listener,
) -> dict[tuple[str, int, int], dict[str, float]]:
    """The numbers of each clip; a clip of another size than the reference is an error of its own."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    done, total = 0, len(names)
    for p, prompt in enumerate(plan.prompts):
        for s in range(plan.settings.seeds):
            reference = judges.look(_read(clips, names[REFERENCE, p, s]), fps)
            image = None if prompt.image is None else as_large(prompt.image, reference.clip)
            for variant in plan.variants:
                done += 1
                on_event(Step("measuring", done, total))
                frames = _read(clips, names[variant.key, p, s])
                if frames.shape != reference.clip.shape:
                    raise UsageError(
                        "source and target made clips of different sizes", where=variant.label,
                        values=f"{_by(reference.clip.shape)}, {_by(frames.shape)} (frames x height x width)",
                        fix="set the size for both: --frames, --height, --width",
                    )  # fmt: skip
                own = variant.key == REFERENCE
                look = reference if own else judges.look(frames, fps)
                found[variant.key, p, s] = judges.judge(look, None if own else reference, prompt.text, fps, image)
    return found


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[:3]))


def _few(prompts: int, seeds: int) -> tuple[str, ...]:
    """What so few clips do not say."""
    if prompts * seeds == 1:
        return ("One prompt and one seed: no number here has an interval, and another seed may reverse the order.",)
    if prompts < 5:
        what = f"{prompts} prompts are few" if prompts > 1 else "One prompt is one case"
        return (f"{what}: the intervals are too narrow, and say nothing about other prompts.",)
    return ()
