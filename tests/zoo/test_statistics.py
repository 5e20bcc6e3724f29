"""The scores: what they are on renderings, where the right answer is known."""

import pytest
import torch
from torch import Generator

from loraport.errors import UsageError
from loraport.zoo import statistics, world

PROMPTS = world.prompt_indices(world.draw_prompts(8, seed=3))


def _clips(style):
    return world.render(PROMPTS, style=style, generator=Generator().manual_seed(77))


@pytest.mark.parametrize("style", ["noir", "outline", "stripe"])
def test_progress_is_zero_for_plain_and_one_for_styled_renderings(style):
    references = statistics.references(PROMPTS, style=style)
    assert abs(statistics.style_progress(_clips("base"), references).mean()) < 0.1
    assert abs(statistics.style_progress(_clips(style), references).mean() - 1) < 0.1


def test_halfway_pictures_lie_between():
    references = statistics.references(PROMPTS, style="noir")
    half = (_clips("base") + _clips("noir")) / 2
    assert 0.3 < statistics.style_progress(half, references).mean() < 0.7


def test_progress_does_not_see_where_the_shape_stands():
    references = statistics.references(PROMPTS, style="outline")
    clips = _clips("base")
    there = statistics.style_progress(clips, references)
    assert torch.allclose(there, statistics.style_progress(clips.roll(3, -1), references), atol=0.05)


def test_distances():
    clips = _clips("outline")
    references = statistics.references(PROMPTS, style="outline")
    near = statistics.distance_to_styled(clips, references)
    assert (near < statistics.distance_to_styled(_clips("base"), references)).all()
    assert torch.equal(statistics.distance_between(clips, clips), torch.zeros(len(PROMPTS)))
    black, white = torch.full_like(clips, -1.0), torch.full_like(clips, 3.0)  # clamped to 1
    assert torch.allclose(statistics.distance_between(black, white), torch.ones(len(PROMPTS)))
    assert torch.allclose(statistics.distance_to_styled(references.clips[:, 5], references), torch.zeros(8), atol=1e-3)


def test_mean_and_error():
    assert statistics.mean_and_error(torch.tensor([1.0, 3.0])) == (2.0, 1.0)
    with pytest.raises(UsageError, match="two clips"):
        statistics.mean_and_error(torch.tensor([1.0]))
