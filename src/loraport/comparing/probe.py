"""How much of one colour a target shows: the dose of a pair in four renders.

`making_probe.py` makes a LoRA whose only effect is the colour. The shift of the mean of a clip is its dose.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from loraport.comparing.images import FirstFrame
from loraport.comparing.making_probe import inputs_of, outputs_for, write_probe
from loraport.comparing.opening import DeviceSetup, opened, said_of_unused
from loraport.comparing.prompts import Prompt
from loraport.comparing.rendering import Shot, render, set_sampling, with_loras
from loraport.comparing.report import ProbeReport
from loraport.comparing.settings import COLOURS, CompareSettings
from loraport.comparing.sides import Side
from loraport.comparing.variants import Placed, Role
from loraport.containers.names import Expert
from loraport.engine.events import Listener, Step, Warned
from loraport.errors import NumericalError
from loraport.files import atomic_paths

PUSH = 0.2
"""How much the channels of the colour are raised, of 1: far from where they are cut off at middling grey."""
LEAST = 0.02  # of the colour, which the source has to show
GREY = (128, 128, 128)


def measure(
    sides: Mapping[Role, Side],
    files: Mapping[Expert, Path],
    *,
    colour: str,
    prompt: str,
    seed: int,
    settings: CompareSettings,
    device: str,
    overwrite: bool,
    on_event: Listener,
) -> ProbeReport:
    """Make the probe of a source, and measure how much of it the target shows.

    Args:
        sides: source and target.
        files: the probe, for each transformer that the models have.
        colour: its name.
        prompt: what is shown. Models whose videos begin with an image are given a grey one.
        seed: of the noise.
        settings: size of the clips, offloading, precision.
        device: auto, cpu, cuda, cuda:1 or mps.
        overwrite: replace existing files.
        on_event: called with every event.

    Raises:
        LoraportError: as `loraport.probe`.
    """
    place = DeviceSetup.of(device, settings.precision, settings.offload)
    source, target = sides["source"], sides["target"]
    target.tell(on_event)
    family, needs_image = source.model.family, not source.model.by_prompt
    for sentence in said_of_unused((source.model, target.model), settings, with_image=needs_image):
        on_event(Warned(sentence))
    with tempfile.TemporaryDirectory(prefix="loraport-", ignore_cleanup_errors=True) as folder:
        image = _grey(Path(folder, "grey.png")) if needs_image else None
        shot = Shot(Prompt(prompt, image), seed, settings.negative, settings.height, settings.width, settings.frames)
        made = [Placed(Path(folder, f"{expert}.safetensors"), 1.0, expert) for expert in files]
        with opened(source.model, place, with_image=needs_image) as pipeline:
            on_event(Step("asking the pipeline which output is which colour", 1, 5))
            put = outputs_for(pipeline, family, source.settings, shot, PUSH * np.array(COLOURS[colour]))
            set_sampling(pipeline, source.settings)
            on_event(Step("source without the probe", 2, 5))
            with inputs_of(pipeline, family, tuple(files)) as seen:
                plain = render(pipeline, family, source.settings, shot)
            spreads = []
            for one in made:
                read, spread = seen[one.expert].constant()
                spreads.append(spread)
                write_probe(one.file, family, read, put)
            on_event(Step("source with the probe", 3, 5))
            with with_loras(pipeline, family, made):
                tinted = render(pipeline, family, source.settings, shot)
            del pipeline
        first = dose(plain, tinted, colour)
        if abs(first[0]) < LEAST:
            raise NumericalError(
                "the source does not show the probe either, so there is no dose to measure",
                where=str(source.model.path), values=f"{100 * first[0]:.1f} % of the colour",
                fix="try another --colour, or more steps",
            )  # fmt: skip
        with opened(target.model, place, with_image=needs_image) as pipeline:
            set_sampling(pipeline, target.settings)
            on_event(Step("target without the probe", 4, 5))
            with with_loras(pipeline, family, target.placed):
                plain = render(pipeline, family, target.settings, shot)
            on_event(Step("target with the probe", 5, 5))
            with with_loras(pipeline, family, [*target.placed, *made]):
                tinted = render(pipeline, family, target.settings, shot)
            del pipeline
        second = dose(plain, tinted, colour)
        with atomic_paths(list(files.values()), overwrite=overwrite) as temporary:
            for one in made:
                temporary[files[one.expert]].write_bytes(one.file.read_bytes())
    return ProbeReport(
        files["high"], family.title, family.diffusers.output, colour, max(spreads), first[0], second[0],
        (first[1], second[1]), second[0] / first[0], target.known, files.get("low"),
    )  # fmt: skip


def _grey(file: Path) -> FirstFrame:
    from PIL import Image

    Image.new("RGB", (64, 64), GREY).save(file)
    return FirstFrame.of(file)


def dose(plain: UInt8[np.ndarray, "f h w 3"], tinted: UInt8[np.ndarray, "f h w 3"], colour: str) -> tuple[float, float]:
    """How much of the asked colour the mean takes (1 is all of it), and how much it moves in other directions."""
    asked = PUSH * np.array(COLOURS[colour])
    moved = (tinted.mean((0, 1, 2)) - plain.mean((0, 1, 2))) / 255
    share = float(moved @ asked / (asked @ asked))
    return share, float(np.linalg.norm(moved - share * asked) / np.linalg.norm(asked))
