"""Pictures of a comparison: a still sheet, an animation, and the sprite strips that the page plays.

Pixels are enlarged without smoothing: what a tiny model painted is what is shown. Pillow is imported when a picture
is drawn, not before.
"""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from loraport.report.comparison import Comparison, Measure, Row

if TYPE_CHECKING:
    from PIL.Image import Image

INK, FAINT, PAPER, RULE = (24, 26, 31), (104, 110, 122), (255, 255, 255), (226, 229, 234)
TINTS = {"reference": (91, 100, 115), "baseline": (176, 96, 38), "result": (22, 124, 128)}
MARGIN, GAP = 20, 4
CELL, LABELS, SCORES = 84, 236, 132  # about the width of a clip, of the labels, and of each column of scores
MILLISECONDS = 220  # a frame of an animation is shown


@dataclass(frozen=True)
class _Layout:
    """Where things go, in pixels."""

    cell: int
    head: int
    clips: int
    rows: int
    scores: int

    @property
    def left(self) -> int:
        return MARGIN + LABELS

    @property
    def right(self) -> int:
        return self.left + self.clips * (self.cell + GAP) + GAP

    @property
    def size(self) -> tuple[int, int]:
        width = self.right + self.scores * SCORES + MARGIN
        return width, MARGIN + self.head + self.rows * (self.cell + GAP) + MARGIN

    def row_top(self, row: int) -> int:
        return MARGIN + self.head + row * (self.cell + GAP)


def still(comparison: Comparison, *, scores: tuple[str, ...] = (), cell: int = CELL) -> bytes:
    """A PNG sheet: a row for each way of making the clips, a column for each prompt, the middle frame of each clip.

    Args:
        comparison: what is drawn.
        scores: keys of measures that are drawn as bars on the right.
        cell: size of a clip in pixels, rounded down to a multiple of its own size.
    """
    layout = _layout(comparison, scores, cell)
    return _save(_sheet(comparison, scores, layout, _frames(comparison) // 2), "PNG", {"optimize": True})


def animation(comparison: Comparison, *, scores: tuple[str, ...] = ()) -> bytes:
    """The same sheet as an endless GIF, with a breath before it starts again."""
    from PIL.Image import Dither

    layout = _layout(comparison, scores, CELL)
    sheets = [_sheet(comparison, scores, layout, frame) for frame in range(_frames(comparison))]
    palette = _common_palette(comparison, sheets[0], layout)
    pictures = [sheet.quantize(palette=palette, dither=Dither.NONE) for sheet in sheets]
    durations = [MILLISECONDS] * (len(pictures) - 1) + [3 * MILLISECONDS]
    more = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0, "optimize": False}
    return _save(pictures[0], "GIF", more)


def strip(clips: UInt8[np.ndarray, "n f h w 3"]) -> bytes:
    """A PNG sprite at original size: clips side by side with a clear pixel between them, frames one below the other."""
    from PIL import Image

    count, frames, high, wide, _ = clips.shape
    sprite = np.zeros((frames, high, count, wide + 1, 4), dtype=np.uint8)
    sprite[..., :wide, :3] = clips.transpose(1, 2, 0, 3, 4)
    sprite[..., :wide, 3] = 255
    flat = sprite.reshape(frames * high, count * (wide + 1), 4)[:, :-1]
    return _save(Image.fromarray(np.ascontiguousarray(flat)), "PNG", {"optimize": True})


def _layout(comparison: Comparison, scores: tuple[str, ...], cell: int) -> _Layout:
    rows = comparison.shown()
    clips = rows[0].clips
    assert clips is not None
    cell = max(cell // clips.shape[3], 1) * clips.shape[3]
    lines = max((len(caption) for caption in comparison.captions), default=0)
    return _Layout(cell, 15 * lines + 12, len(clips), len(rows), len(scores))


def _frames(comparison: Comparison) -> int:
    clips = comparison.shown()[0].clips
    assert clips is not None
    return clips.shape[1]


def _sheet(comparison: Comparison, scores: tuple[str, ...], layout: _Layout, frame: int) -> "Image":
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    small = _font(12)
    measures = [measure for key in scores for measure in comparison.measures if measure.key == key]
    for line, text in enumerate(_wrap(comparison.title, _font(17), LABELS - 20)):
        draw.text((MARGIN, MARGIN + 22 * line - 2), text, font=_font(17), fill=INK)
    for column, caption in enumerate(comparison.captions):
        middle = layout.left + column * (layout.cell + GAP) + layout.cell // 2
        for line, text in enumerate(caption):
            draw.text((middle, MARGIN + 15 * line), text, font=small, fill=FAINT, anchor="ma")
    for column, measure in enumerate(measures):
        at = layout.right + column * SCORES + 12
        for line, text in enumerate(_wrap(measure.title, small, SCORES - 16)):
            draw.text((at, MARGIN + 15 * line), text, font=small, fill=FAINT)
    for at, row in enumerate(comparison.shown()):
        _draw_row(sheet, draw, row, layout, layout.row_top(at), frame)
        for column, measure in enumerate(measures):
            left = layout.right + column * SCORES + 12
            _draw_score(draw, row, measure, left, layout.row_top(at) + layout.cell // 2, SCORES - 24)
    return sheet


def _draw_row(sheet: "Image", draw: Any, row: Row, layout: _Layout, top: int, frame: int) -> None:
    from PIL import Image

    assert row.clips is not None
    title, small = _font(15), _font(12)
    lines = _wrap(row.label, title, LABELS - 26)
    notes = _wrap(row.note, small, LABELS - 26)
    y = top + (layout.cell - 19 * len(lines) - 15 * len(notes)) // 2
    draw.rectangle((MARGIN, top + 6, MARGIN + 3, top + layout.cell - 7), fill=TINTS.get(row.kind, INK))
    for line in lines:
        draw.text((MARGIN + 13, y), line, font=title, fill=INK)
        y += 19
    for line in notes:
        draw.text((MARGIN + 13, y + 1), line, font=small, fill=FAINT)
        y += 15
    for column, clip in enumerate(row.clips):
        picture = Image.fromarray(np.ascontiguousarray(clip[frame])).resize(
            (layout.cell, layout.cell), Image.Resampling.NEAREST
        )
        sheet.paste(picture, (layout.left + column * (layout.cell + GAP), top))


def _draw_score(draw: Any, row: Row, measure: Measure, left: int, middle: int, width: int) -> None:
    score = row.scores.get(measure.key)
    if score is None:
        return
    tint = TINTS.get(row.kind, INK)

    def place(value: float) -> float:
        return left + width * min(max((value - measure.low) / (measure.high - measure.low), 0.0), 1.0)

    mean, error = (measure.show(value).replace("−", "-") for value in (score.mean, score.error))  # the font lacks it
    draw.text((left, middle - 20), mean, font=_font(17), fill=INK)
    draw.text((left + _font(17).getlength(mean) + 7, middle - 15), f"± {error}", font=_font(12), fill=FAINT)
    draw.rectangle((left, middle + 8, left + width, middle + 13), fill=RULE)
    zero = place(min(max(0.0, measure.low), measure.high))
    ends = sorted((zero, place(score.mean)))
    draw.rectangle((ends[0], middle + 8, ends[1], middle + 13), fill=tint)
    draw.line((place(score.mean - score.error), middle + 10, place(score.mean + score.error), middle + 10), fill=INK)


def _common_palette(comparison: Comparison, sheet: "Image", layout: _Layout) -> "Image":
    """One palette for all frames, so that still parts stay still: from the clips at their own size, and the labels."""
    from PIL import Image

    pixels = np.concatenate([row.clips.reshape(-1, 3) for row in comparison.shown() if row.clips is not None])
    labels = np.asarray(sheet.crop((0, 0, layout.left, layout.size[1])))[::2, ::2].reshape(-1, 3)
    ends = np.asarray(sheet.crop((layout.right, 0, *layout.size)))[::2, ::2].reshape(-1, 3)
    sample = np.concatenate([pixels, labels, ends])[: len(pixels) * 4]
    palette = Image.fromarray(np.ascontiguousarray(sample[None])).quantize(256, kmeans=2, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    from_paper = np.abs(colours - PAPER).sum(1)
    colours[from_paper <= max(from_paper.min(), 32)] = PAPER  # the sheet stays white; Pillow's lookup is coarse
    palette.putpalette(colours.flatten().tolist())
    palette.load()  # hands the new colours to the pixels, which `quantize` reads
    return palette


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _save(picture: "Image", kind: str, more: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **more)
    return buffer.getvalue()
