"""The renderer: shapes, ranges, what each attribute does, and that it leaves the random state alone."""

import pytest
import torch
from torch import Generator

from loraport.errors import UsageError
from loraport.zoo import world


def _render(prompts, style="base", seed=0):
    return world.render(world.prompt_indices(prompts), style=style, generator=Generator().manual_seed(seed))


def _centres(clip):
    """Centre of the shape in each frame of a clip on black, (frames, 2) as x, y."""
    light = (clip + 1).amax(0)
    light = (light - light.flatten(1).median(1).values[:, None, None]).clamp(min=0)
    weight = light / light.sum((1, 2), keepdim=True)
    at = torch.arange(world.SIZE) + 0.5
    return torch.stack([(weight.sum(1) * at).sum(1), (weight.sum(2) * at).sum(1)], 1)


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
    way = _centres(_render([world.Prompt("circle", "yellow", direction, "black")])[0]).diff(dim=0)
    assert (sign * way[:, axis] > 0.5).all()
    assert way[:, 1 - axis].abs().max() < 0.2


def test_zigzag_sways_across_the_path():
    way = _centres(_render([world.Prompt("circle", "yellow", "right", "black")], "zigzag")[0])
    assert (way[:, 1].diff().abs() > 2).all()


def test_colours_and_backgrounds_come_out_as_named():
    for at, colour in enumerate(world.COLOURS):
        clip = _render([world.Prompt("square", colour, "up", "black")])[0]
        brightest = clip[:, 2].flatten(1)[:, clip[:, 2].sum(0).argmax()]
        assert torch.allclose((brightest + 1) / 2, torch.tensor(world.COLOUR_RGB[at]), atol=0.05)
    for at, background in enumerate(world.BACKGROUNDS):
        corner = _render([world.Prompt("circle", "red", "up", background)])[0, :, 0, 0, 0]
        assert torch.allclose((corner + 1) / 2, torch.tensor(world.BACKGROUND_RGB[at]), atol=0.02)


def test_the_same_seed_gives_the_same_scene_in_every_style():
    prompt = [world.Prompt("cross", "cyan", "left", "black")]
    base, outline = _render(prompt), _render(prompt, "outline")
    assert torch.allclose(_centres(base[0]), _centres(outline[0]), atol=0.6)
    assert torch.equal(base, _render(prompt))
    assert not torch.equal(base, _render(prompt, seed=1))


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
        world.render(prompts, style=style, generator=Generator().manual_seed(3)) for style in ("base", "ring")
    )
    same = (plain - ring).abs().flatten(1).amax(1) == 0
    assert torch.equal(~same, prompts[:, 0] == world.SHAPES.index("circle"))
