"""The same prompt and seed made in several ways, as the page plays it in step: clips as sheets of frames, and numbers.

A sheet is one WebP picture with the frames in rows. All sheets together stay within a budget: they get smaller, then
fewer frames, and what still does not fit is left out, which the page says.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from loraport.report.comparison import Measure
from loraport.report.player import ARROWS, base64_of

if TYPE_CHECKING:
    from markupsafe import Markup

SIZES = ((448, 49), (320, 49), (224, 49), (160, 49), (160, 25), (160, 13))
"""Width and number of frames that clips are cut to at most; the first that keeps the page small enough."""
BUDGET = 4_300_000  # bytes of all sheets in base64
MOST_OF_IMAGE = 192  # pixels of the longer side of an image that clips begin with
TINY = 96  # clips up to this width are shown pixel by pixel
QUALITY = 84


@dataclass(frozen=True)
class Making:
    """One way of making the clips.

    Attributes:
        label: its name.
        note: a few words more, such as the file.
        kind: "reference", "baseline" or "result": its colour.
    """

    label: str
    note: str = ""
    kind: str = "baseline"


@dataclass(frozen=True)
class Interval:
    """A mean, and its 95 % interval where it has one.

    Attributes:
        mean: None where there is none.
        low, high: of the interval.
        note: a few words more.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Given:
    """An image that clips begin with.

    Attributes:
        name: by which it is told from others.
        pixels: fetches them.
    """

    name: str
    pixels: Callable[[], UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True, eq=False)
class Scene:
    """One prompt and one seed.

    Attributes:
        prompt: the text.
        seed: of the noise.
        clips: uint8 pixels, one a way, in their order.
        image: what the clips begin with; None where they begin with nothing.
    """

    prompt: str
    seed: int
    clips: tuple[UInt8[np.ndarray, "f h w 3"], ...]
    image: Given | None = None

    @property
    def title(self) -> str:
        """What it is chosen by: the name of its image, and the prompt, which may be long."""
        return self.prompt if self.image is None else f"{self.image.name}: {self.prompt}"


@dataclass(frozen=True, eq=False)
class SideBySide:
    """What is played and measured.

    Attributes:
        makings: the ways, in the order of the clips.
        measures: columns of the table; those of the motion come first.
        scores: a row a way: key of the measure -> interval.
        scenes: one after the other, so that their pixels need not be in memory together.
        count: how many scenes there are, which is how many clips are behind each number.
        prompts: how many prompts they have.
    """

    makings: tuple[Making, ...]
    measures: tuple[Measure, ...]
    scores: tuple[dict[str, Interval], ...]
    scenes: Iterator[Scene]
    count: int
    prompts: int


def shown(side: SideBySide) -> dict[str, Any]:
    """What the template needs of it. Takes the scenes."""
    scenes: list[dict[str, Any]] = []
    room, size = BUDGET, None
    for scene in side.scenes:
        size = size or _size(scene, side.count)
        made = _cut(scene, size)
        room -= _bytes(made)
        if room < 0 and scenes:
            break
        scenes.append(made)
    return {
        "makings": side.makings,
        "measures": side.measures,
        "scenes": scenes,
        "left_out": side.count - len(scenes),
        "clips": side.count,
        "by_prompt": side.prompts > 1,
        "prompts": list(dict.fromkeys(scene["title"] for scene in scenes)),
        "seeds": list(dict.fromkeys(scene["seed"] for scene in scenes)),
        "frames": max((scene["frames"] for scene in scenes), default=1),
        "rows": [
            {"making": making, "cells": _cells(scores, side.measures)}
            for making, scores in zip(side.makings, side.scores, strict=True)
        ],
        "arrows": ARROWS,
    }


def _size(scene: Scene, count: int) -> tuple[int, int]:
    """Width and frames with which so many scenes like this one fit."""
    for size in SIZES[:-1]:
        if count * _bytes(_cut(scene, size)) <= BUDGET:
            return size
    return SIZES[-1]


def _bytes(scene: dict[str, Any]) -> int:
    """Of all its pictures."""
    given = 0 if scene["image"] is None else len(scene["image"]["sheet"])
    return given + sum(map(len, scene["clips"]))


def _cut(scene: Scene, size: tuple[int, int]) -> dict[str, Any]:
    frames, high, wide, _ = scene.clips[0].shape
    most = size[1]
    picked = list(range(frames)) if frames <= most else [round(i * (frames - 1) / (most - 1)) for i in range(most)]
    columns = math.ceil(math.sqrt(len(picked)))
    return {
        "prompt": scene.prompt,
        "title": scene.title,
        "image": None if scene.image is None else _shown_image(scene.image, min(size[0], MOST_OF_IMAGE)),
        "seed": scene.seed,
        "frames": len(picked),
        "of": frames,
        "columns": columns,
        "lines": math.ceil(len(picked) / columns),
        "aspect": f"{wide}/{high}",
        "tiny": wide <= TINY,
        "clips": [sheet(clip[picked], min(wide, size[0]), columns) for clip in scene.clips],
    }


def _shown_image(image: Given, most: int) -> dict[str, Any]:
    """An image as it was given, neither wider nor higher than so many pixels."""
    pixels = image.pixels()
    high, wide = pixels.shape[:2]
    width = max(round(wide * min(1, most / max(high, wide))), 1)
    return {"name": image.name, "aspect": f"{wide}/{high}", "width": width, "sheet": sheet(pixels[None], width, 1)}


def sheet(clip: UInt8[np.ndarray, "f h w 3"], width: int, columns: int) -> "Markup":
    """The frames in rows of so many, as WebP in base64; without loss where it is small enough to see each pixel."""
    from PIL import Image

    count, high, wide, _ = clip.shape
    height = max(round(high * width / wide), 1)
    lines = math.ceil(count / columns)
    whole = Image.new("RGB", (columns * width, lines * height))
    for number in range(columns * lines):  # what is over holds the last frame, since edges of neighbours show through
        picture = Image.fromarray(np.ascontiguousarray(clip[min(number, count - 1)]))
        if width != wide:
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        whole.paste(picture, (number % columns * width, number // columns * height))
    buffer = io.BytesIO()
    whole.save(buffer, "WEBP", **({"lossless": True} if wide <= TINY else {"quality": QUALITY}))
    return base64_of(buffer.getvalue())


def _cells(scores: dict[str, Interval], measures: Sequence[Measure]) -> list[dict[str, Any]]:
    cells = []
    for measure in measures:
        found = scores.get(measure.key)
        spread = ""
        if found is not None and found.low is not None and found.high is not None:
            spread = f"{measure.show(found.low)} to {measure.show(found.high)}"
        text = "" if found is None or found.mean is None else measure.show(found.mean)
        note = "" if found is None else found.note
        cells.append({"title": measure.title, "text": text, "spread": spread, "note": note})
    return cells
