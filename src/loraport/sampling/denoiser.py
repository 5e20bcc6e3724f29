"""What calibration runs: anything that predicts a velocity, and how it is sampled.

Time runs from 1 (noise) to 0 (clip), `x_t = (1 - t) x + t ε`, and the velocity is `ε - x`. Other inference code is
plugged in by an object with the two methods of `Denoiser`; the ready-made one for diffusers is in `wan.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from loraport.errors import UsageError


@runtime_checkable
class Denoiser(Protocol):
    """A model in memory, ready to run without gradients of its own weights."""

    def velocity(
        self, latents: Float[Tensor, "n ..."], time: float, condition: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """Predicted velocity of a batch, in float32, without guidance.

        Args:
            latents: noisy latents, float32.
            time: of all of them, 1 (noise) to 0.
            condition: what the prompt became, such as a text encoder's output; one row a clip.
        """
        ...

    def linear(self, layer: str) -> nn.Linear:
        """The module of a canonical layer name (`blocks.7.self_attn.q`). Raises MismatchError for an unknown one."""
        ...


@dataclass(frozen=True)
class Conditions:
    """Prompts as the models take them.

    Attributes:
        prompts: one row a prompt. empty: the empty (negative) prompt, one row, for guidance.
        texts: for the report; may be empty.
    """

    prompts: Float[Tensor, "p ..."]
    empty: Float[Tensor, "1 ..."]
    texts: tuple[str, ...] = ()

    def take(self, start: int, count: int) -> "Conditions":
        """`count` rows from `start` on, round and round."""
        rows = [(start + i) % len(self.prompts) for i in range(count)]
        return Conditions(self.prompts[rows], self.empty, tuple(self.texts[row] for row in rows if self.texts))


@dataclass(frozen=True)
class Schedule:
    """How a model makes clips.

    Attributes:
        times: from 1 to 0, both included; one step less than values.
        guidance: classifier-free guidance scale; 1 is one pass a step, without the empty prompt.
        sampler: `euler` follows the velocity; `renoise` predicts the clip and adds fresh noise for the next time,
            as models distilled by distribution matching are sampled.
    """

    times: tuple[float, ...]
    guidance: float = 1.0
    sampler: Literal["euler", "renoise"] = "euler"

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
        if len(self.times) < 2 or not falling or self.times[0] > 1 or self.times[-1] != 0:
            raise UsageError(
                "the times of a schedule must fall from at most 1 to 0", values=", ".join(f"{t:g}" for t in self.times)
            )

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return len(self.times) - 1

    @property
    def passes(self) -> int:
        """Forward passes that one clip takes."""
        return self.steps * (1 if self.guidance == 1 else 2)

    @classmethod
    def even(cls, steps: int, *, shift: float = 1.0, guidance: float = 1.0) -> "Schedule":
        """Evenly spaced times, shifted towards the noisy end: `t = s u / (1 + (s - 1) u)`."""
        grid = [1 - i / steps for i in range(steps + 1)]
        return cls(tuple(shift * u / (1 + (shift - 1) * u) for u in grid), float(guidance))


@dataclass(frozen=True)
class Runnable:
    """A model that can be opened when its turn comes, so that two of them need never be in memory together.

    Attributes:
        name: for people.
        open: loads the model. Called once or twice; what it returns is let go of as soon as it is not needed.
        schedule: how it is sampled.
        checkpoint: its weights on disk, if weight-space candidates are wanted.
        latents: shape of one clip's latents.
        bundled: one of the tiny family, which brings its own prompts.
        distill: a LoRA that makes this model of its source, for a target that is kept so (`checkpoint` is then None).
        small: run batches side by side on one thread each (tiny models on a CPU).
        encode: turns texts into conditions, if there is a text encoder. Raises LoraportError.
        identity: says which weights these are, so that kept parts of a run on others are not taken for theirs;
            without it the files of `checkpoint` say so, or nothing but the name.
    """

    name: str
    open: Callable[[], Denoiser]
    schedule: Schedule
    checkpoint: Path | None
    latents: tuple[int, ...]
    small: bool = False
    bundled: bool = False
    distill: Path | None = None
    encode: Callable[[Sequence[str]], Conditions] | None = field(default=None, repr=False)
    identity: Callable[[], str] | None = field(default=None, repr=False)
