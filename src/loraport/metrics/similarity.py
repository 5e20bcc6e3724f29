"""What is made of features of frames: likeness of two clips, of a clip and a text, and of a clip with itself."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

LOOKS = 5
"""Frames of a clip that stand for it: first, last, and evenly between."""


def looked_at(frames: int) -> list[int]:
    """Which frames of a clip stand for it."""
    return sorted({round(i * (frames - 1) / (LOOKS - 1)) for i in range(LOOKS)})


def likeness(features: Float[Tensor, "n d"], reference: Float[Tensor, "n d"]) -> float:
    """Mean cosine of the features of two clips, frame by frame."""
    return cosine_similarity(features, reference).mean().item()


def likeness_to_text(features: Float[Tensor, "n d"], text: Float[Tensor, "1 d"]) -> float:
    """Mean cosine of the frames and the prompt."""
    return cosine_similarity(features, text).mean().item()


def consistency(features: Float[Tensor, "n d"]) -> float:
    """VBench's subject and background consistency: of each frame with the one before and with the first.

    The mean over frames from the second on of half the sum of both cosines, negative ones taken as 0; 1 for a still.
    """
    if len(features) < 2:
        return 1.0
    before = cosine_similarity(features[1:], features[:-1]).clamp(min=0)
    first = cosine_similarity(features[1:], features[:1]).clamp(min=0)
    return torch.stack([before, first]).mean().item()
