"""Pictures: sizes, exact pixels, frames, and a small file."""

import io

import numpy as np
import pytest
from PIL import Image

from loraport.report import Comparison, Measure, Row, Score, figures


def _comparison(rows=3, clips=4, frames=5, size=16, label="a rather long label that has to be broken"):
    rng = np.random.default_rng(1)
    measure = Measure("m", "a measure with a long title", "help", high=1.0)
    made = [
        Row(
            str(at),
            label,
            "note",
            rng.integers(0, 255, (clips, frames, size, size, 3), dtype=np.uint8),
            {"m": Score(-0.2, 0.1)},
        )
        for at in range(rows)
    ]
    return Comparison((("red", "circle"),) * clips, (*made, Row("numbers", "no clips")), (measure,), 4)


def test_the_still_holds_the_pixels_unsmoothed():
    comparison = _comparison()
    image = np.asarray(Image.open(io.BytesIO(figures.still(comparison, cell=40))).convert("RGB"))
    clip = comparison.rows[1].clips[1, 2]
    enlarged = clip.repeat(2, 0).repeat(2, 1)
    windows = np.lib.stride_tricks.sliding_window_view(image[:, :, 0], enlarged.shape[:2])
    assert (windows == enlarged[:, :, 0]).all((2, 3)).any()


def test_bars_are_drawn_for_the_asked_scores_only():
    plain = Image.open(io.BytesIO(figures.still(_comparison())))
    scored = Image.open(io.BytesIO(figures.still(_comparison(), scores=("m",))))
    assert scored.width > plain.width
    assert scored.height == plain.height


def test_the_animation_has_every_frame_and_a_white_ground():
    movie = Image.open(io.BytesIO(figures.animation(_comparison(), scores=("m",))))
    assert movie.format == "GIF"
    assert movie.n_frames == 5
    assert movie.info["loop"] == 0
    for frame in range(movie.n_frames):
        movie.seek(frame)
        assert movie.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_the_strip_is_a_lossless_sprite():
    clips = _comparison(clips=3, frames=2, size=4).rows[0].clips
    sprite = np.asarray(Image.open(io.BytesIO(figures.strip(clips))))
    assert sprite.shape == (2 * 4, 3 * 5 - 1, 4)
    assert (sprite[4:8, 5:9, :3] == clips[1, 1]).all()
    assert (sprite[:, 4, 3] == 0).all()
    assert (sprite[:, 0, 3] == 255).all()


def test_pictures_are_the_same_every_time():
    assert figures.still(_comparison(), scores=("m",)) == figures.still(_comparison(), scores=("m",))
    assert figures.animation(_comparison()) == figures.animation(_comparison())


def test_one_row_and_one_clip_are_enough():
    for draw in (figures.still, figures.animation):
        assert Image.open(io.BytesIO(draw(_comparison(rows=1, clips=1, frames=2)))).width > 100


@pytest.mark.parametrize("module", ["loraport.report", "loraport.report.figures"])
def test_importing_reports_imports_no_drawing_library(module):
    import subprocess
    import sys

    code = f"import sys, {module}; print([m for m in ('PIL', 'matplotlib', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
