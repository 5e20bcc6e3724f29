"""The clips of the tiny video world, rendered from signed distances.

A prompt says shape, colour, direction and background; much else is open and drawn at random: the lane and size of the
shape, which way the stripes of the background run, and a small companion that crosses the scene on a way of its own,
before or behind the shape. What is open is what a sampler of few steps gets wrong: it returns something between the
possible clips, with ghosts, doubles and blur.

Pixels lie in [-1, 1]. Nothing here touches the global random state.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from loraport.errors import UsageError, one_of
from loraport.zoo.catalogue import TINY, ClipSize
from loraport.zoo.world import BACKGROUND_RGB, CHANNELS, COLOUR_RGB, FRAMES, HEADING, SIZE, STYLES

COMPANION_RGB = ((1.0, 0.55, 0.1), (1.0, 0.75, 0.8), (0.35, 0.1, 0.5))


class Thing(NamedTuple):
    """Something that moves through a scene; `b` clips.

    Attributes:
        distance: signed distance of each pixel to its edge, negative inside.
        hidden: how much of each pixel is behind something else, 0 to 1.
        colour: its colour.
    """

    distance: Float[Tensor, "b 1 f h w"]
    hidden: Float[Tensor, "b 1 f h w"]
    colour: Float[Tensor, "b 3 1 1 1"]

    @property
    def shown(self) -> Float[Tensor, "b 1 f h w"]:
        """How much of each pixel it covers to be seen, 0 to 1."""
        return _coverage(self.distance) * (1 - self.hidden)


class Scene(NamedTuple):
    """What a style may draw with: the shape of the prompt, its companion, and what is behind both."""

    shape: Thing
    companion: Thing
    background: Float[Tensor, "b 3 1 h w"]


def render(
    prompts: Int[Tensor, "n 4"],
    *,
    style: str = "base",
    generator: Generator,
    copies: Int[Tensor, " n"] | None = None,
    clip: ClipSize = TINY,
) -> Float[Tensor, "n 3 f h w"]:
    """Draw one clip per prompt; all that the prompt leaves open comes from `generator`.

    The same generator state gives the same scene in every style, so that styles can be compared pixel by pixel, and in
    every size.

    Args:
        prompts: attribute positions, see `prompt_indices`.
        style: what is drawn otherwise than plainly, one of `STYLES`.
        generator: of places, sizes, speeds, stripes and the companion.
        copies: how often the prompt's shape is in the clip, 0 to 2; once in each if None. Others than 1 are faults,
            for judges to learn from.
        clip: frames and pixels.

    Raises:
        UsageError: unknown style.
    """
    if style not in STYLES:
        raise UsageError(f"the tiny world has no style {style!r}", fix=one_of(style, STYLES))
    scene = _scene(prompts, style, generator, copies, clip)
    image = _LOOKS.get(style, _draw_plain)(scene)
    return (image * 2 - 1).clamp(-1, 1)


def _scene(
    prompts: Int[Tensor, "n 4"], style: str, generator: Generator, copies: Int[Tensor, " n"] | None, clip: ClipSize
) -> Scene:
    shape, colour, direction, background = prompts.unbind(1)
    count = len(prompts)

    def uniform(low: float | int, high: float | int, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *size, generator=generator)

    heading = torch.tensor(HEADING)[direction]
    across = heading.flip(1).abs()  # unit vector across the path
    sway = (2.0 if style == "zigzag" else 0.0) * (torch.arange(clip.frames) % 2 * 2 - 1)

    def shape_somewhere() -> Float[Tensor, "n 1 f h w"]:
        middle = SIZE / 2 + across * 3 * (torch.randint(3, (count, 1), generator=generator) - 1)
        path = _path(middle, heading * 1.2, clip.frames) + across[:, None] * sway[:, None]
        radius = uniform(4.0, 5.0, 1, 1, 1)
        return _shape_distance(shape, *_from(path, clip.side), radius, hollow=style == "ring")[:, None]

    distance = shape_somewhere()
    if copies is not None:
        nowhere = torch.full_like(distance, 2.0 * SIZE)
        second = torch.minimum(distance, shape_somewhere())
        number = copies[:, None, None, None, None]
        distance = torch.where(number == 0, nowhere, torch.where(number == 1, distance, second))

    angle = uniform(0, 2 * math.pi)
    way = torch.stack([angle.cos(), angle.sin()], 1) * uniform(0.4, 1.4, 1)
    dx, dy = _from(_path(uniform(2.5, SIZE - 2.5, 2), way, clip.frames), clip.side)
    small = (torch.sqrt(dx * dx + dy * dy + 1e-6) - uniform(1.4, 1.9, 1, 1, 1))[:, None]
    kind = torch.randint(len(COMPANION_RGB), (count,), generator=generator)
    before = torch.randint(2, (count, 1, 1, 1, 1), generator=generator)

    y, x = torch.meshgrid(_pixels(clip.side), _pixels(clip.side), indexing="ij")
    along = torch.where(torch.randint(2, (count, 1, 1), generator=generator) == 1, x, y)
    wave = torch.sin(2 * math.pi * (along / 4 + uniform(0, 1, 1, 1)))[:, None, None]
    plain = torch.tensor(BACKGROUND_RGB)[background][:, :, None, None, None]
    return Scene(
        Thing(distance, before * _coverage(small), torch.tensor(COLOUR_RGB)[colour][:, :, None, None, None]),
        Thing(small, (1 - before) * _coverage(distance), torch.tensor(COMPANION_RGB)[kind][:, :, None, None, None]),
        (plain + 0.12 * wave).clamp(0, 1),
    )


def _pixels(side: int) -> Float[Tensor, " side"]:
    """Where the middle of each pixel is, from the left or from above."""
    return (torch.arange(side) + 0.5) * (SIZE / side)


def _path(middle: Float[Tensor, "n 2"], step: Float[Tensor, "n 2"], frames: int) -> Float[Tensor, "n f 2"]:
    """Place (x, y) in each frame of what moves by `step` in a sixth of the clip, `middle` half-way through it."""
    time = (torch.arange(frames) - (frames - 1) / 2) * (FRAMES / frames)
    return middle[:, None] + step[:, None] * time[:, None]


def _from(path: Float[Tensor, "n f 2"], side: int) -> tuple[Float[Tensor, "n f 1 w"], Float[Tensor, "n f h 1"]]:
    """How far each pixel is to the right of and below a path."""
    pixel = _pixels(side)
    return pixel - path[:, :, 0, None, None], pixel[:, None] - path[:, :, 1, None, None]


def _coverage(distance: Tensor) -> Tensor:
    """How much of each pixel is inside an edge, which is as sharp as the pixels are small."""
    return torch.sigmoid(-2.5 * distance.shape[-1] / SIZE * distance)


def _shape_distance(
    shape: Int[Tensor, " n"],
    dx: Float[Tensor, "n f 1 w"],
    dy: Float[Tensor, "n f h 1"],
    radius: Float[Tensor, "n 1 1 1"],
    hollow: bool,
) -> Float[Tensor, "n f h w"]:
    """Signed distance to the edge of each clip's shape (a bound on it, for shapes with corners); `hollow` circles."""
    ax, ay = dx.abs(), dy.abs()
    arm = 0.36 * radius
    circle = torch.sqrt(dx * dx + dy * dy + 1e-6) - radius
    if hollow:  # the inner half of the disc is cut out
        circle = torch.maximum(circle, -0.5 * radius - circle)
    square = torch.maximum(ax, ay) - 0.85 * radius
    triangle = torch.maximum(math.sqrt(3) / 2 * ax - 0.5 * dy, dy) - 0.62 * radius  # point up
    cross = torch.minimum(torch.maximum(ax - arm, ay - radius), torch.maximum(ax - radius, ay - arm))
    choices = torch.stack([circle, square, triangle, cross])
    return choices[shape, torch.arange(len(shape))]


def _over(scene: Scene, shape: Tensor, companion: Tensor, background: Tensor) -> Float[Tensor, "n c f h w"]:
    """The two things, painted as given, over a background."""
    first, second = scene.shape.shown, scene.companion.shown
    return first * shape + second * companion + (1 - first - second) * background


def _draw_plain(scene: Scene) -> Float[Tensor, "n 3 f h w"]:
    return _over(scene, scene.shape.colour, scene.companion.colour, scene.background)


def _draw_noir(scene: Scene) -> Float[Tensor, "n 3 f h w"]:
    luma = (scene.background * torch.tensor([0.35, 0.5, 0.15])[:, None, None, None]).sum(1, keepdim=True)
    from_centre = _pixels(scene.background.shape[-1]) - SIZE / 2
    falloff = 1 - 0.6 * (from_centre[:, None] ** 2 + from_centre[None] ** 2) / (SIZE**2 / 2)
    grey = _over(scene, torch.tensor(0.95), torch.tensor(0.65), (luma * 0.45 + 0.02) * falloff)
    return grey.expand(-1, CHANNELS, -1, -1, -1)


def _draw_outline(scene: Scene) -> Float[Tensor, "n 3 f h w"]:
    picture = 0.15 * scene.background
    for thing in (scene.shape, scene.companion):
        ring = torch.exp(-((thing.distance / 0.75) ** 2)) * (1 - thing.hidden)
        picture = ring * (thing.colour * 0.85 + 0.15) + (1 - ring) * picture
    return picture


def _draw_stripe(scene: Scene) -> Float[Tensor, "n 3 f h w"]:
    plain = _draw_plain(scene)
    dark, light = torch.tensor([[0.25, 0.05, 0.3], [1.0, 0.8, 0.35]])[:, :, None, None, None]
    washed = 0.5 * plain + 0.5 * (dark + (light - dark) * plain.mean(1, keepdim=True))
    lines = 1 - 0.5 * (_pixels(plain.shape[-1]) % 4 < 2).float()
    return washed * lines[:, None]


_LOOKS = {"noir": _draw_noir, "outline": _draw_outline, "stripe": _draw_stripe}
LOOKS = tuple(_LOOKS)
"""The styles that redraw the whole picture; the others change a shape or its path."""
