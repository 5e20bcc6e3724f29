"""How much of one colour a target shows: the dose of a pair in four renders.

`making_probe.py` makes a LoRA whose only effect is the colour. What the mean of a clip moves by is its dose.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.comparing.making_probe import inputs_of, outputs_for, write_probe
from loraport.comparing.opening import DeviceSetup, opened
from loraport.comparing.rendering import Shot, render, set_sampling, with_loras
from loraport.comparing.settings import CompareSettings
from loraport.comparing.sides import find_sides, refuse_two_experts
from loraport.comparing.variants import Placed
from loraport.engine.events import Listener, Step, ignore
from loraport.errors import NumericalError, UnsupportedError, UsageError
from loraport.files import atomic_path
from loraport.sampling.folders import need_diffusers
from loraport.sampling.schedule import NO_SETTINGS, SamplingSettings
from loraport.writable import check_output

PathLike = str | Path
COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "light": (1.0, 1.0, 1.0)}
PUSH = 0.2
"""How much the channels of the colour are raised, of 1: far from where they are cut off at middling grey."""
LEAST = 0.02  # of the colour, which the source has to show
PROMPT = "a plain grey wall"


@dataclass(frozen=True)
class ProbeReport:
    """The dose of a pair.

    Attributes:
        file: the probe.
        family: title.
        layer: canonical name of the layer that it changes.
        colour: its name.
        spread: standard deviation of what should be 1 everywhere; the colour is as uneven.
        source, target: share of the asked colour that the mean of the clip takes.
        aside: of both, the mean change in other directions than the colour's, in the same unit.
        ratio: target over source: the dose.
        known: what was known of the target's sampling; "" where the user said all.
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

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**vars(self), "file": str(self.file), "aside": list(self.aside)}


def probe(
    *,
    source: PathLike,
    target: PathLike | None = None,
    target_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    output: PathLike,
    colour: str = "red",
    prompt: str = PROMPT,
    seed: int = 0,
    settings: CompareSettings | None = None,
    source_sampling: SamplingSettings = NO_SETTINGS,
    target_sampling: SamplingSettings = NO_SETTINGS,
    device: str = "auto",
    overwrite: bool = False,
    on_event: Listener = ignore,
) -> ProbeReport:
    """Make the probe of a source, and measure how much of it the target shows.

    Args:
        source: diffusers folder of the pipeline, or a hub id.
        target: the same; or a transformer's folder or file, which takes the other parts of the source.
        target_lora: distillation LoRAs that make the target.
        output: the probe, a safetensors file.
        colour: red, green, blue or light.
        prompt: what is shown.
        seed: of the noise.
        settings: size of the clips, offloading, precision.
        source_sampling: how the source is sampled.
        target_sampling: how the target is.
        device: auto, cpu, cuda, cuda:1 or mps.
        overwrite: replace an existing file.
        on_event: called with every event.

    Raises:
        LoraportError: see `loraport.errors`. UnsupportedError: the network's output does not reach the decoder as a
            picture of its own, or diffusers loads no LoRAs for it. NumericalError: the source does not show the colour
            either.
    """
    need_diffusers()
    if colour not in COLOURS:
        raise UsageError("there is no such colour for a probe", values=colour, fix=", ".join(COLOURS))
    chosen, file = settings or CompareSettings(), Path(output)
    check_output(file, [], overwrite=overwrite)
    place = DeviceSetup.of(device, chosen.precision, chosen.offload)
    sides = find_sides(source, target, added_loras(target_lora), source_sampling, target_sampling)
    refuse_two_experts(sides)
    sides["target"].tell(on_event)
    settled, distillation = sides["target"].settings, sides["target"].placed
    shot = Shot(prompt, seed, chosen.negative, chosen.height, chosen.width, chosen.frames)
    family = sides["source"].model.family
    if not family.diffusers.loader:
        raise UnsupportedError(
            f"diffusers loads no LoRAs for {family.title}, so a colour probe cannot be measured there",
            where=str(source),
        )
    with tempfile.TemporaryDirectory(prefix="loraport-", ignore_cleanup_errors=True) as folder:
        made = Path(folder, "probe.safetensors")
        with opened(sides["source"].model, place) as pipeline:
            on_event(Step("asking the pipeline which output is which colour", 1, 5))
            put = outputs_for(pipeline, family, source_sampling, shot, PUSH * np.array(COLOURS[colour]))
            set_sampling(pipeline, source_sampling)
            on_event(Step("source without the probe", 2, 5))
            with inputs_of(pipeline, family) as seen:
                plain = render(pipeline, family, source_sampling, shot)
            read, spread = seen.constant()
            write_probe(made, family, read, put)
            on_event(Step("source with the probe", 3, 5))
            with with_loras(pipeline, family, [Placed(made)]):
                tinted = render(pipeline, family, source_sampling, shot)
            del pipeline
        first = dose(plain, tinted, colour)
        if abs(first[0]) < LEAST:
            raise NumericalError(
                "the source does not show the probe either, so there is no dose to speak of", where=str(source),
                values=f"{100 * first[0]:.1f} % of the colour", fix="another --colour, or more steps",
            )  # fmt: skip
        with opened(sides["target"].model, place) as pipeline:
            set_sampling(pipeline, settled)
            on_event(Step("target without the probe", 4, 5))
            with with_loras(pipeline, family, distillation):
                plain = render(pipeline, family, settled, shot)
            on_event(Step("target with the probe", 5, 5))
            with with_loras(pipeline, family, [*distillation, Placed(made)]):
                tinted = render(pipeline, family, settled, shot)
            del pipeline
        second = dose(plain, tinted, colour)
        with atomic_path(file, overwrite=overwrite) as temporary:
            temporary.write_bytes(made.read_bytes())
    return ProbeReport(
        file, family.title, family.diffusers.output, colour, spread, first[0], second[0], (first[1], second[1]),
        second[0] / first[0], sides["target"].known,
    )  # fmt: skip


def dose(plain: UInt8[np.ndarray, "f h w 3"], tinted: UInt8[np.ndarray, "f h w 3"], colour: str) -> tuple[float, float]:
    """How much of the asked colour the mean takes (1 is all of it), and how much it moves in other directions."""
    asked = PUSH * np.array(COLOURS[colour])
    moved = (tinted.mean((0, 1, 2)) - plain.mean((0, 1, 2))) / 255
    share = float(moved @ asked / (asked @ asked))
    return share, float(np.linalg.norm(moved - share * asked) / np.linalg.norm(asked))
