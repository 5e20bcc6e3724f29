"""The renderer: shapes, ranges, what each attribute does, and that it leaves the random state alone."""

import pytest
import torch
from torch import Generator

from loraport.errors import UsageError
from loraport.evaluate.statistics import positions, shape_mask
from loraport.zoo import drawing, world
from loraport.zoo.catalogue import ClipSize


def _render(prompts, style="base", seed=0):
    return drawing.render(world.prompt_indices(prompts), style=style, generator=Generator().manual_seed(seed))


def _ways(prompt, style="base"):
    """How the shape moves from frame to frame in many clips, (clips, frames - 1, 2) as x, y."""
    prompts = [prompt] * 32
    return positions(_render(prompts, style), world.prompt_indices(prompts)).diff(dim=1)


def _pixels(prompt):
    """All pixels of many clips, (3, n), from 0 to 1."""
    return (_render([prompt] * 16).transpose(0, 1).flatten(1) + 1) / 2


@pytest.mark.parametrize("style", world.STYLES)
def test_clips_have_the_right_shape_and_range(style):
    clips = _render(world.draw_prompts(7, seed=1), style)
    assert clips.shape == (7, 3, world.FRAMES, world.SIZE, world.SIZE)
    assert clips.min() >= -1
    assert clips.max() <= 1
    assert clips.std() > 0.1


def test_no_prompts_give_no_clips():
    assert _render([]).shape == (0, 3, world.FRAMES, world.SIZE, world.SIZE)


@pytest.mark.parametrize(
    ("direction", "axis", "sign"), [("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1)]
)
def test_the_shape_moves_where_the_prompt_says(direction, axis, sign):
    ways = _ways(world.Prompt("circle", "blue", direction, "black"))
    assert (sign * ways[..., axis].mean(1) > 0.5).all()
    assert ways[..., 1 - axis].mean().abs() < 0.1


def test_zigzag_sways_across_the_path():
    prompt = world.Prompt("circle", "blue", "right", "black")
    assert (_ways(prompt, "zigzag")[..., 1].abs().mean(1) > 1.5).all()
    assert (_ways(prompt)[..., 1].abs().mean(1) < 0.6).all()


def test_colours_and_backgrounds_come_out_as_named():
    for at, colour in enumerate(world.COLOURS):
        pixels = _pixels(world.Prompt("square", colour, "up", "black"))
        away = (pixels - torch.tensor(world.COLOUR_RGB[at])[:, None]).norm(dim=0)
        assert (away < 0.05).float().mean() > 0.05
    for at, background in enumerate(world.BACKGROUNDS):
        middle = _pixels(world.Prompt("circle", "red", "up", background)).median(1).values
        assert torch.allclose(middle, torch.tensor(world.BACKGROUND_RGB[at]), atol=0.15)  # stripes


def test_the_same_seed_gives_the_same_scene_in_every_style():
    prompt = [world.Prompt("cross", "cyan", "left", "black")]
    base, stripe = _render(prompt), _render(prompt, "stripe")
    rows = torch.arange(world.SIZE) % 4 >= 2  # between the lines the wash is affine in the scene
    both = torch.stack([clip[0, :, :, rows].mean(0).flatten() for clip in (base, stripe)])
    assert torch.corrcoef(both)[0, 1] > 0.99
    assert torch.equal(base, _render(prompt))
    assert not torch.equal(base, _render(prompt, seed=1))


@pytest.mark.parametrize("style", world.STYLES)
def test_a_larger_clip_shows_the_same_scene(style):
    prompts = world.prompt_indices(world.draw_prompts(8, seed=2))

    def drawn(frames, side):
        generator = Generator().manual_seed(3)
        return drawing.render(prompts, style=style, generator=generator, clip=ClipSize(frames, side))

    small, fine = drawn(6, 16), drawn(6, 32)
    assert fine.shape == (8, 3, 6, 32, 32)
    seen = torch.nn.functional.avg_pool3d(fine, (1, 2, 2))
    assert (seen - small).abs().mean() < 0.1 < (small.flip(0) - small).abs().mean()
    if style != "zigzag":  # which sways from frame to frame
        torch.testing.assert_close(drawn(18, 16)[:, :, 1::3], small, atol=1e-4, rtol=0)


def test_noir_has_no_colour():
    clip = _render(world.draw_prompts(3, seed=0), "noir")
    assert torch.equal(clip[:, 0], clip[:, 2])


def test_prompts_are_drawn_without_repeats_and_by_seed():
    drawn = world.draw_prompts(384, seed=5)
    assert len(set(drawn)) == 384
    assert world.draw_prompts(5, seed=1) == world.draw_prompts(5, seed=1)
    assert world.draw_prompts(5, seed=1) != world.draw_prompts(5, seed=2)
    with pytest.raises(UsageError):
        world.draw_prompts(385, seed=0)


def test_encoding_gives_one_token_per_attribute():
    tokens = world.encode(world.prompt_indices(world.all_prompts()))
    assert tokens.shape[:2] == (384, 4)
    assert len(torch.unique(tokens.flatten(1), dim=0)) == 384
    assert world.encode_null(2).shape == (2, *tokens.shape[1:])
    assert not (tokens == world.encode_null(1)).all(-1).any()


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="hexagon"):
        world.Prompt("hexagon", "red", "up", "black")
    with pytest.raises(UsageError, match="sepia"):
        _render(world.draw_prompts(1, seed=0), "sepia")


def test_a_prompt_reads_as_a_sentence():
    prompt = world.Prompt("circle", "red", "up", "black")
    assert prompt.text == "a red circle moving up on a black background"
    assert prompt.indices == (0, 0, 3, 0)


def test_held_out_pairs_are_in_no_other_prompt():
    held = [prompt for prompt in world.all_prompts() if prompt.held_out]
    assert 64 <= len(held) <= 128
    for shape, colour in world.HELD_OUT[:4]:
        assert {(p.shape, p.colour) for p in held} >= {(shape, colour)}
        assert (shape, colour) not in {(p.shape, p.colour) for p in world.all_prompts() if not p.held_out}


def test_the_ring_changes_circles_only_and_only_inside():
    prompts = world.prompt_indices(world.all_prompts()[::5])
    plain, ring = (
        drawing.render(prompts, style=style, generator=Generator().manual_seed(3)) for style in ("base", "ring")
    )
    same = (plain - ring).abs().flatten(1).amax(1) == 0
    assert torch.equal(~same, prompts[:, 0] == world.SHAPES.index("circle"))


def test_faulty_clips_have_the_shape_as_often_as_asked():
    prompts = world.prompt_indices([world.Prompt("square", "blue", "right", "black")] * 48)
    areas = []
    for copies in range(3):
        clips = drawing.render(prompts, generator=Generator().manual_seed(4), copies=torch.full((48,), copies))
        areas.append(shape_mask(clips, prompts).mean())
    assert areas[0] < 0.02 < areas[1]
    assert 1.2 * areas[1] < areas[2] < 2 * areas[1]


def test_what_a_prompt_leaves_open_differs_from_clip_to_clip():
    prompts = [world.Prompt("square", "blue", "right", "black")] * 48
    lanes = positions(_render(prompts), world.prompt_indices(prompts)).mean(1)[:, 1]
    away, which = (lanes[:, None] - torch.tensor([5.0, 8.0, 11.0])).abs().min(1)
    assert set(which.tolist()) == {0, 1, 2}
    assert away.max() < 1.5  # what hides the shape moves its centre
