"""Scores that need no learning: where the shape is, how it moves, whether it has a hole, how much of a look there is.

The shape is found by its colour, which the prompt says. Every score has one value per clip.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from loraport.evaluate import looks
from loraport.evaluate.tasks import LoraTask
from loraport.zoo import drawing, world
from loraport.zoo.catalogue import TINY, ClipSize

_DRAWN = 256  # renderings behind a template
_NEAR = 0.45  # distance in RGB, channels from 0 to 1; the colours of the world lie further apart


def shape_mask(clips: Float[Tensor, "n 3 f h w"], prompts: Int[Tensor, "n 4"]) -> Float[Tensor, "n f h w"]:
    """How near each pixel is to the colour that the prompt gives the shape: 1 at it, 0 from `_NEAR` on."""
    colour = torch.tensor(world.COLOUR_RGB)[prompts[:, 1]][:, :, None, None, None]
    away = ((clips.clamp(-1, 1) + 1) / 2 - colour).norm(dim=1)
    return (1 - away / _NEAR).clamp_min(0)


def positions(clips: Float[Tensor, "n 3 f h w"], prompts: Int[Tensor, "n 4"]) -> Float[Tensor, "n f 2"]:
    """Centre of the shape in each frame, (x, y) in pixels; the middle of the picture if nothing is seen."""
    mask = shape_mask(clips, prompts)
    pixel = torch.arange(clips.shape[-1]) + 0.5
    weight = mask.sum((-2, -1))
    x, y = (mask.sum(-2) * pixel).sum(-1), (mask.sum(-1) * pixel).sum(-1)
    seen = weight > 1e-6
    middle = torch.tensor(clips.shape[-1] / 2)
    weight = weight.clamp_min(1e-6)
    return torch.stack([torch.where(seen, x / weight, middle), torch.where(seen, y / weight, middle)], -1)


def motion(clips: Float[Tensor, "n 3 f h w"]) -> Float[Tensor, " n"]:
    """Amount of motion: mean absolute change of a pixel from frame to frame, pixels counted from 0 to 1.

    Printed beside every other score, because a clip that stands still is an easy way to look consistent.
    """
    return clips.clamp(-1, 1).diff(dim=2).abs().flatten(1).mean(1) / 2


def _across(clips: Float[Tensor, "n 3 f h w"], prompts: Int[Tensor, "n 4"]) -> Float[Tensor, "n f"]:
    """Position of the shape across the path that the prompt asks for, about its mean, in pixels."""
    heading = torch.tensor(world.HEADING)[prompts[:, 2]]
    side = (positions(clips, prompts) * heading.flip(1).abs()[:, None]).sum(-1)
    return side - side.mean(1, keepdim=True)


def sway_template(clip: ClipSize) -> Float[Tensor, " f"]:
    """Mean difference between drawn zigzag and drawn straight paths, across the heading, in pixels."""
    drawn = world.prompt_indices(world.draw_prompts(_DRAWN, seed=1))
    bent, straight = (
        _across(drawing.render(drawn, style=style, generator=Generator().manual_seed(1), clip=clip), drawn)
        for style in ("zigzag", "base")
    )
    return (bent - straight).mean(0)


def sway(
    clips: Float[Tensor, "n 3 f h w"], prompts: Int[Tensor, "n 4"], template: Float[Tensor, " f"]
) -> Float[Tensor, " n"]:
    """How much of the drawn zigzag there is in the shape's path: 0 on a straight path, 1 as the renderer draws it.

    The path across the heading, projected on the template.
    """
    return _across(clips, prompts) @ template / template.square().sum()


def hole(clips: Float[Tensor, "n 3 f h w"], prompts: Int[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """How empty the middle of the shape is: 0 if it is as bright as the brightest part of the mask, 1 if empty.

    Bilinear value of the mask at its centre against the mask's peak, mean over frames.
    """
    mask, at = shape_mask(clips, prompts), positions(clips, prompts)
    grid = (at / clips.shape[-1] * 2 - 1)[:, :, None, None]
    middle = torch.nn.functional.grid_sample(
        mask.flatten(0, 1)[:, None], grid.flatten(0, 1), align_corners=False, padding_mode="border"
    )
    peak = mask.amax((-2, -1)).clamp_min(1e-6)
    return (1 - middle.view(mask.shape[:2]) / peak).mean(1)


@dataclass(frozen=True, eq=False)
class TaughtStatistic:
    """A task's own statistic for fixed prompts: what it compares with is rendered once. Build it with `of`."""

    task: LoraTask
    prompts: Int[Tensor, "n 4"]
    references: looks.References | None
    template: Float[Tensor, " f"] | None

    @classmethod
    def of(cls, task: LoraTask, prompts: Int[Tensor, "n 4"], clip: ClipSize = TINY) -> "TaughtStatistic":
        """Render what is needed, in the size of the clips that are to be scored."""
        if task.statistic == "sway":
            return cls(task, prompts, None, sway_template(clip))
        if task.statistic == "hole":
            return cls(task, prompts, None, None)
        unique, which = prompts.unique(dim=0, return_inverse=True)
        refs = looks.references(unique, style=task.style, clip=clip)
        return cls(task, prompts, looks.References(refs.plain[which], refs.styled[which], refs.clips[which, :1]), None)

    def __call__(self, clips: Float[Tensor, "n 3 f h w"]) -> Float[Tensor, " n"]:
        """One value a clip: 0 about where the plain look, shape or path is, 1 about where the taught one is."""
        if self.template is not None:
            return sway(clips, self.prompts, self.template)
        return hole(clips, self.prompts) if self.references is None else looks.style_progress(clips, self.references)
