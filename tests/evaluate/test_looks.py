"""The scores: what they are on renderings, where the right answer is known."""

import pytest
import torch
from torch import Generator

from loraport.errors import UsageError
from loraport.evaluate import looks
from loraport.zoo import drawing, world

PROMPTS = world.prompt_indices(world.draw_prompts(8, seed=3))


def _clips(style):
    return drawing.render(PROMPTS, style=style, generator=Generator().manual_seed(77))


@pytest.mark.parametrize("style", ["noir", "outline", "stripe"])
def test_progress_is_zero_for_plain_and_one_for_styled_renderings(style):
    references = looks.references(PROMPTS, style=style)
    assert abs(looks.style_progress(_clips("base"), references).mean()) < 0.1
    assert abs(looks.style_progress(_clips(style), references).mean() - 1) < 0.1


def test_halfway_pictures_lie_between():
    references = looks.references(PROMPTS, style="noir")
    half = (_clips("base") + _clips("noir")) / 2
    assert 0.3 < looks.style_progress(half, references).mean() < 0.7


def test_progress_does_not_see_where_the_shape_stands():
    references = looks.references(PROMPTS, style="outline")
    clips = _clips("base")
    there = looks.style_progress(clips, references)
    assert torch.allclose(there, looks.style_progress(clips.roll(3, -1), references), atol=0.05)


def test_distances():
    clips = _clips("outline")
    references = looks.references(PROMPTS, style="outline")
    near = looks.distance_to_styled(clips, references)
    assert (near < looks.distance_to_styled(_clips("base"), references)).all()
    assert torch.equal(looks.distance_between(clips, clips), torch.zeros(len(PROMPTS)))
    black, white = torch.full_like(clips, -1.0), torch.full_like(clips, 3.0)  # clamped to 1
    assert torch.allclose(looks.distance_between(black, white), torch.ones(len(PROMPTS)))
    assert torch.allclose(looks.distance_to_styled(references.clips[:, 5], references), torch.zeros(8), atol=1e-3)


def test_mean_and_error():
    assert looks.mean_and_error(torch.tensor([1.0, 3.0])) == (2.0, 1.0)
    with pytest.raises(UsageError, match="two clips"):
        looks.mean_and_error(torch.tensor([1.0]))
