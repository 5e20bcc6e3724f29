"""Scores of sampled clips that need no learnt judge: they compare with renderings of the same prompt.

Where a shape stands in a clip is left to chance, so clips are described by what does not depend on it: the sorted
values of each colour channel and of the brightness steps between neighbouring pixels (a "profile"). Every score has
one value per clip; `mean_and_error` turns them into what is printed.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from loraport.errors import UsageError
from loraport.zoo import drawing
from loraport.zoo.catalogue import TINY, ClipSize

QUANTILES = 32
RENDERINGS = 64  # per prompt and style: enough that the mean profile is steady to 1 %


@dataclass(frozen=True)
class References:
    """Renderings of each prompt, plain and in the style that is looked for.

    Attributes:
        plain: mean profile of plain renderings, one row per prompt.
        styled: mean profile of styled renderings.
        clips: the styled renderings themselves, in [-1, 1].
    """

    plain: Float[Tensor, "n p"]
    styled: Float[Tensor, "n p"]
    clips: Float[Tensor, "n k 3 f h w"]


def references(prompts: Int[Tensor, "n 4"], *, style: str, seed: int = 0, clip: ClipSize = TINY) -> References:
    """Render `RENDERINGS` scenes per prompt, the same scenes plain and styled."""
    many = prompts.repeat_interleave(RENDERINGS, 0)
    plain = drawing.render(many, style="base", generator=Generator().manual_seed(seed), clip=clip)
    styled = drawing.render(many, style=style, generator=Generator().manual_seed(seed), clip=clip)
    shape = (len(prompts), RENDERINGS)
    return References(
        plain=profile(plain).unflatten(0, shape).mean(1),
        styled=profile(styled).unflatten(0, shape).mean(1),
        clips=styled.unflatten(0, shape),
    )


def profile(clips: Float[Tensor, "n 3 f h w"]) -> Float[Tensor, "n p"]:
    """Sorted colours and sorted brightness steps of each clip, thinned to `QUANTILES` values each."""
    clips = clips.clamp(-1, 1)
    light = clips.mean(1)
    steps = torch.cat([light.diff(dim=-1).abs().flatten(1), light.diff(dim=-2).abs().flatten(1)], 1)
    return torch.cat([_quantiles(clips.flatten(2)).flatten(1), _quantiles(steps)], 1)


def style_progress(clips: Float[Tensor, "n 3 f h w"], refs: References) -> Float[Tensor, " n"]:
    """How far each clip has come from the plain look (0) to the style (1), along the line between their profiles.

    `<p - p_plain, p_styled - p_plain> / ||p_styled - p_plain||²`; beyond 1 is more of the style than the renderer
    draws. It sees colour and contrast, not whether the shape is right.
    """
    way = refs.styled - refs.plain
    return ((profile(clips) - refs.plain) * way).sum(1) / way.square().sum(1)


def distance_to_styled(clips: Float[Tensor, "n 3 f h w"], refs: References) -> Float[Tensor, " n"]:
    """Root mean square difference to the nearest styled rendering of the prompt; pixels counted from 0 to 1.

    Small only when style, shape, colour, background and motion are all right, so it also sees broken pictures.
    """
    flat = clips.clamp(-1, 1).flatten(1)[:, None]
    exact = "donot_use_mm_for_euclid_dist"  # the quick way is off by a thousandth near zero
    nearest = torch.cdist(flat, refs.clips.flatten(2), compute_mode=exact).squeeze(1).min(1).values
    return nearest / math.sqrt(flat.shape[-1]) / 2


def distance_between(clips: Float[Tensor, "n 3 f h w"], others: Float[Tensor, "n 3 f h w"]) -> Float[Tensor, " n"]:
    """Root mean square difference of paired clips; pixels counted from 0 to 1."""
    return (clips.clamp(-1, 1) - others.clamp(-1, 1)).flatten(1).square().mean(1).sqrt() / 2


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Mean over clips and its standard error.

    Raises:
        UsageError: fewer than two clips have no error.
    """
    if len(values) < 2:
        raise UsageError("a standard error needs at least two clips", values=f"{len(values)}")
    values = values.double()
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def _quantiles(values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch q"]:
    ordered = values.sort(-1).values
    picks = torch.linspace(0, ordered.shape[-1] - 1, QUANTILES).round().long()
    return ordered[..., picks]
