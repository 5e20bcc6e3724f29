"""Measures that need nothing, each against another way to the same number."""

import numpy as np
import pytest
from scipy import ndimage

from loraport.metrics import closeness, colour, detail, motion
from loraport.metrics.colour import Colours


def clip(seed=0, shape=(4, 17, 21)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def smooth(seed=0):
    made = ndimage.gaussian_filter(clip(seed).astype(float), (0, 2, 2, 0))
    return ((made - made.min()) / np.ptp(made) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("rgb", "known"),
    [  # by colour-science's and Lindbloom's calculators, sRGB and D65
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0.0, 0.0)),
        ((5, 5, 5), (1.37, 0.0, 0.0)),
    ],
)
def test_lab_of_known_colours(rgb, known):
    found = colour.lab(np.array(rgb, dtype=np.uint8).reshape(1, 1, 3))[0, 0]
    assert np.allclose(found, known, atol=0.02)


def test_a_tint_is_a_shift_of_colour_and_none_of_its_spread():
    grey, red = np.full((1, 4, 4, 3), 128, np.uint8), np.full((1, 4, 4, 3), 128, np.uint8)
    red[..., 0] = 160
    tinted, plain = Colours.of(red), Colours.of(grey)
    apart = colour.lab(red[0])[0, 0] - colour.lab(grey[0])[0, 0]
    assert colour.colour_shift(tinted, plain) == pytest.approx(np.linalg.norm(apart))
    assert colour.colour_spread_shift(tinted, plain) == pytest.approx(0, abs=1e-9)
    assert plain.chroma == pytest.approx(0, abs=0.01)
    assert tinted.chroma > 10
    assert tinted.contrast == pytest.approx(0)


def test_colours_of_a_clip_are_those_of_all_its_pixels():
    made = clip()
    made[1] //= 4  # a dark frame: the spread is over frames too, contrast within one
    pixels = np.stack([colour.lab(frame) for frame in made])
    found = Colours.of(made)
    assert found.mean == pytest.approx(pixels.mean((0, 1, 2)))
    assert found.spread == pytest.approx(pixels.std((0, 1, 2)))
    assert found.chroma == pytest.approx(np.hypot(pixels[..., 1], pixels[..., 2]).mean())
    assert found.contrast == pytest.approx(pixels[..., 0].std((1, 2)).mean())


def test_flicker_is_that_of_vbench():
    made = clip()
    floats = made.astype(np.float32)[..., ::-1]  # VBench reads frames as BGR
    theirs = (255.0 - np.mean([np.mean(np.abs(a - b)) for a, b in zip(floats[1:], floats[:-1], strict=True)])) / 255.0
    assert motion.flicker(made) == pytest.approx(float(theirs), rel=1e-6)
    assert motion.frame_difference(made) == pytest.approx(255 * (1 - float(theirs)), rel=1e-5)


def test_a_still_does_not_move():
    assert motion.flicker(clip(shape=(1, 5, 5))) == 1
    assert motion.frame_difference(clip(shape=(1, 5, 5))) == 0
    assert motion.flicker(np.repeat(clip(shape=(1, 5, 5)), 3, 0)) == 1


def test_edges_are_sobels():
    made = smooth()
    y = made @ np.array([0.299, 0.587, 0.114])
    found = [np.hypot(ndimage.sobel(f, 0), ndimage.sobel(f, 1))[1:-1, 1:-1] / 8 for f in y]
    assert detail.edges(made) == pytest.approx(np.mean(found))


def test_sharpness_is_the_variance_of_the_laplacian():
    made = smooth()
    y = made @ np.array([0.299, 0.587, 0.114])
    found = [ndimage.laplace(f)[1:-1, 1:-1].var() for f in y]
    assert detail.sharpness(made) == pytest.approx(np.mean(found))


def test_blur_takes_edges_and_sharpness():
    assert detail.edges(smooth()) < detail.edges(clip())
    assert detail.sharpness(smooth()) < detail.sharpness(clip())


def test_ssim_against_filters_of_scipy():
    a, b = smooth(0), smooth(1)

    def mean(x):  # a window of 11, where it fits
        return ndimage.gaussian_filter(x, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    scores = []
    for x, y in zip(a @ np.array([0.299, 0.587, 0.114]), b @ np.array([0.299, 0.587, 0.114]), strict=True):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        c1, c2 = 6.5025, 58.5225
        scores.append(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    assert closeness.ssim(a, b) == pytest.approx(np.mean(scores))
    assert closeness.ssim(a, a) == pytest.approx(1)
    tiny = clip(shape=(2, 4, 3))
    assert closeness.ssim(tiny, tiny) == pytest.approx(1)


def test_distance_is_in_levels():
    a = clip()
    assert closeness.distance(a, a) == 0
    assert closeness.distance(np.zeros((2, 3, 3, 3), np.uint8), np.full((2, 3, 3, 3), 10, np.uint8)) == pytest.approx(
        10
    )


def test_flow_follows_what_moves():
    pytest.importorskip("cv2", reason="opencv is not installed")
    picture = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 96)), 3)
    picture = ((picture - picture.min()) / np.ptp(picture) * 255).astype(np.uint8)
    made = np.stack([np.repeat(np.roll(picture, 2 * i, 1)[..., None], 3, -1) for i in range(4)])
    assert motion.flow(made) == pytest.approx(2 / 64, rel=0.35)  # and what comes in at the border moves too
    assert motion.flow(made[:1]) == 0
    assert motion.flow(np.repeat(made[:1], 3, 0)) == pytest.approx(0, abs=2e-3)
