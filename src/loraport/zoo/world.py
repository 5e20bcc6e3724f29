"""The tiny video world: a shape of some colour drifts over a striped background, six frames of 16 x 16 pixels or more.

A prompt has four attributes, 384 combinations in all, and is encoded as four rows of a fixed token table, so there is
no text encoder. Some pairs of attributes are held out: no training of any model or LoRA has seen them. How a clip is
drawn is in `drawing.py`.

A style redraws the same scene (a look), changes a shape (a content) or bends its path (a motion); LoRAs are trained on
styles, the source model on "base" only.

Lengths are told in sixteenths of the picture's side and times in sixths of the clip, which are pixels and frames of the
bundled models' clips. A larger clip shows the same scene in more and finer pixels and at more moments.

Image axes: x to the right, y down. Nothing here touches the global random state.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from loraport.errors import UsageError, one_of
from loraport.zoo.catalogue import TINY, data_file

FRAMES, SIZE = TINY
CHANNELS = 3

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
DIRECTIONS = ("right", "left", "down", "up")
BACKGROUNDS = ("black", "navy", "grey", "white")
ATTRIBUTES = (SHAPES, COLOURS, DIRECTIONS, BACKGROUNDS)

HELD_OUT = (
    ("circle", "cyan"),
    ("square", "magenta"),
    ("triangle", "yellow"),
    ("cross", "green"),
    ("right", "white"),
    ("up", "grey"),
)
"""Pairs of attribute values that are never shown in training, of models and of LoRAs."""

STYLES = {
    "base": "the plain scene that the source model was trained on",
    "noir": "black and white, the shape glaring, the background dimmed towards the corners",
    "outline": "the shape as a glowing outline, the background almost black",
    "stripe": "a warm two-colour wash with dark horizontal lines",
    "ring": "the plain scene, every circle a ring",
    "zigzag": "the plain scene, the shape wobbling across its path",
}

COLOUR_RGB = (
    (0.95, 0.15, 0.15),
    (0.1, 0.8, 0.2),
    (0.2, 0.35, 1.0),
    (1.0, 0.85, 0.1),
    (0.9, 0.2, 0.85),
    (0.1, 0.85, 0.9),
)
BACKGROUND_RGB = ((0.03, 0.03, 0.05), (0.08, 0.1, 0.35), (0.45, 0.45, 0.45), (0.93, 0.93, 0.9))
HEADING = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))  # (x, y) of each direction

TOKENS_PER_PROMPT = len(ATTRIBUTES)


@dataclass(frozen=True)
class Prompt:
    """One prompt, by attribute values. Raises UsageError for a value that the world does not know."""

    shape: str
    colour: str
    direction: str
    background: str

    def __post_init__(self):
        for value, known in zip(self._values(), ATTRIBUTES, strict=True):
            if value not in known:
                raise UsageError(f"the tiny world knows no {value!r}", fix=one_of(value, known))

    @property
    def text(self) -> str:
        """The prompt as a sentence."""
        return f"a {self.colour} {self.shape} moving {self.direction} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether it has a pair of attributes that no training has seen."""
        mine = self._values()
        return any(first in mine and second in mine for first, second in HELD_OUT)

    @property
    def indices(self) -> tuple[int, ...]:
        """Position of each attribute in `ATTRIBUTES`."""
        return tuple(known.index(value) for value, known in zip(self._values(), ATTRIBUTES, strict=True))

    def _values(self) -> tuple[str, str, str, str]:
        return self.shape, self.colour, self.direction, self.background


def all_prompts() -> list[Prompt]:
    """Every prompt there is, in a fixed order."""
    return [Prompt(s, c, d, b) for s in SHAPES for c in COLOURS for d in DIRECTIONS for b in BACKGROUNDS]


def draw_prompts(count: int, *, seed: int, held_out: bool | None = None) -> list[Prompt]:
    """Draw `count` different prompts without bias: of all 384, or only held-out ones, or only the others.

    Raises:
        UsageError: more prompts are asked for than there are.
    """
    prompts = [prompt for prompt in all_prompts() if held_out in (None, prompt.held_out)]
    if not 0 <= count <= len(prompts):
        raise UsageError("the tiny world has no such number of prompts", values=f"{count}, of {len(prompts)}")
    order = torch.randperm(len(prompts), generator=Generator().manual_seed(seed))
    return [prompts[i] for i in order[:count].tolist()]


def prompt_indices(prompts: Sequence[Prompt]) -> Int[Tensor, "n 4"]:
    """Attribute positions of each prompt, the form that `encode` and `drawing.render` take."""
    return torch.tensor([prompt.indices for prompt in prompts], dtype=torch.long).reshape(-1, TOKENS_PER_PROMPT)


def encode(prompts: Int[Tensor, "n 4"]) -> Float[Tensor, "n 4 d"]:
    """Prompt tokens, one for each attribute: what a text encoder would return."""
    first_row = torch.tensor([0, *torch.tensor([len(known) for known in ATTRIBUTES]).cumsum(0)[:-1].tolist()])
    return _token_table(prompts.device)[prompts + first_row]


def encode_null(count: int) -> Float[Tensor, "n 4 d"]:
    """Tokens of the empty prompt, for classifier-free guidance."""
    return _token_table(torch.get_default_device())[-TOKENS_PER_PROMPT:].expand(count, -1, -1)


@functools.lru_cache
def _token_table(device: torch.device) -> Float[Tensor, "rows d"]:
    """One row for each attribute value, in the order of `ATTRIBUTES`; the last four rows are the empty prompt."""
    from safetensors.torch import load_file

    return load_file(data_file("prompt-tokens.safetensors"))["tokens"].to(device)
