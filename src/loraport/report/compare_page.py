"""The page of a comparison: the same prompt and seed in every way at once, played in step, and the numbers below.

Pixels and numbers come in, HTML goes out. Prompts and names of files are other people's text and are escaped; the page
runs its own script alone and loads nothing.
"""

import base64
import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from loraport.files import write_text
from loraport.report.comparison import Measure
from loraport.report.frame import plain
from loraport.version import __version__

WIDTHS = (448, 320, 224, 160)
"""What clips are made smaller to, the first that keeps the page small enough."""
BYTES = 16 * 2**20  # of a page, about
BYTES_A_PIXEL = 0.12  # of WebP at this quality, base64 included
MOST_FRAMES = 49
TINY = 96  # clips up to this width are shown pixel by pixel
QUALITY = 84


@dataclass(frozen=True)
class Way:
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
    """A mean, and its 95 % interval where it has one."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """One prompt and one seed.

    Attributes:
        prompt: the text.
        seed: of the noise.
        clips: uint8 pixels, one a way, in their order.
    """

    prompt: str
    seed: int
    clips: tuple[UInt8[np.ndarray, "f h w 3"], ...]


@dataclass(frozen=True)
class ComparePage:
    """What the page says besides the clips.

    Attributes:
        title: heading.
        lead: what is compared, in a sentence or two.
        ways: in the order of the clips.
        measures: columns of the table; those of the motion come first.
        scores: a row a way: key of the measure -> interval.
        clips: behind each number.
        warnings: sentences.
        facts: (name, value), settings and files.
    """

    title: str
    lead: str
    ways: tuple[Way, ...]
    measures: tuple[Measure, ...]
    scores: tuple[dict[str, Interval], ...]
    clips: int
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


def write(output: Path, page: ComparePage, scenes: Iterator[Scene], *, count: int) -> Path:
    """Write the page.

    Args:
        output: the HTML file.
        page: texts and numbers.
        scenes: one after the other, so that their pixels need not be in memory together.
        count: how many there are.

    Raises:
        FileError: it cannot be written.
    """
    write_text(output, render(page, scenes, count=count))
    return output


def render(page: ComparePage, scenes: Iterator[Scene], *, count: int) -> str:
    """The page as HTML. See `write`."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    script = _asset("compare.js")
    shown = [_shown(scene, count) for scene in scenes]
    engine = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=plain
    )
    return engine.from_string(_asset("compare.html.j2")).render(
        page=page,
        scenes=shown,
        prompts=list(dict.fromkeys(scene["prompt"] for scene in shown)),
        seeds=list(dict.fromkeys(scene["seed"] for scene in shown)),
        frames=max((scene["frames"] for scene in shown), default=1),
        rows=[_row(way, scores, page) for way, scores in zip(page.ways, page.scores, strict=True)],
        arrows={None: "", "higher": " ↑", "lower": " ↓"},
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        version=__version__,
        css=Markup(_asset("page.css") + _asset("compare.css")),  # ours, and not to be escaped
        script=Markup(script),
    )


def _shown(scene: Scene, count: int) -> dict[str, Any]:
    from markupsafe import Markup

    frames, high, wide, _ = scene.clips[0].shape
    picked = [round(i * (frames - 1) / (MOST_FRAMES - 1)) for i in range(MOST_FRAMES)]
    picked = list(range(frames)) if frames <= MOST_FRAMES else picked
    number = count * len(scene.clips) * len(picked)
    sizes = [width for width in WIDTHS if number * width * width * high / wide * BYTES_A_PIXEL <= BYTES]
    width = min(wide, sizes[0] if sizes else WIDTHS[-1])
    columns = math.ceil(math.sqrt(len(picked)))
    return {
        "prompt": scene.prompt,
        "seed": scene.seed,
        "frames": len(picked),
        "of": frames,
        "columns": columns,
        "lines": math.ceil(len(picked) / columns),
        "aspect": f"{wide}/{high}",
        "tiny": wide <= TINY,
        "clips": [Markup(_sprite(clip[picked], width, columns)) for clip in scene.clips],  # base64: nothing to escape
    }


def _sprite(clip: UInt8[np.ndarray, "f h w 3"], width: int, columns: int) -> str:
    """The frames in rows of so many, as WebP in base64; without loss where it is small enough to see each pixel."""
    from PIL import Image

    count, high, wide, _ = clip.shape
    height = max(round(high * width / wide), 1)
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    places = columns * math.ceil(count / columns)
    for number in range(places):  # what is over holds the last frame, since edges of neighbours show through
        frame = clip[min(number, count - 1)]
        picture = Image.fromarray(np.ascontiguousarray(frame))
        if width != wide:
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(picture, (number % columns * width, number // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", **({"lossless": True} if wide <= TINY else {"quality": QUALITY}))
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _row(way: Way, scores: dict[str, Interval], page: ComparePage) -> dict[str, Any]:
    cells = []
    for measure in page.measures:
        found = scores.get(measure.key)
        spread = ""
        if found is not None and found.low is not None and found.high is not None:
            spread = f"{measure.show(found.low)} to {measure.show(found.high)}"
        text = "" if found is None else measure.show(found.mean)
        cells.append({"title": measure.title, "text": text, "spread": spread, "value": found and found.mean})
    return {"way": way, "cells": cells}


def _asset(name: str) -> str:
    return (resources.files("loraport.report") / "data" / name).read_text(encoding="utf-8")
