"""What is run: anything that predicts a velocity.

Time runs from 1 (noise) to 0 (clip), `x_t = (1 - t) x + t ε`, and the velocity is `ε - x`. Other inference code is
plugged in by an object with the two methods of `Denoiser`; the ready-made one for diffusers is in `wan.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from loraport.adapters.added_lora import AddedLora
from loraport.sampling.schedule import Schedule


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
        prompts: one row a prompt.
        empty: the empty (negative) prompt, one row, for guidance.
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
class Runnable:
    """A model that can be opened when its turn comes, so that two of them need never be in memory together.

    Attributes:
        name: for people.
        open: loads the model. Called once or twice; what it returns is let go of as soon as it is not needed.
        schedule: how it is sampled.
        checkpoint: its weights on disk (a path or what else `open_checkpoint` takes); None where `added` makes it of
            its source.
        latents: shape of one clip's latents.
        bundled: one of the tiny family, which brings its own prompts.
        added: distillation LoRAs that are in the model: it is its `checkpoint`, or its source, with these merged into
            it.
        small: run batches side by side on one thread each (tiny models on a CPU).
        encode: turns texts into conditions, if there is a text encoder. Raises LoraportError.
        identity: says which weights these are, so that kept parts of a run on others are not taken for theirs;
            without it the files of `checkpoint` say so, or nothing but the name.
    """

    name: str
    open: Callable[[], Denoiser]
    schedule: Schedule
    checkpoint: str | Path | None
    latents: tuple[int, ...]
    small: bool = False
    bundled: bool = False
    added: tuple[AddedLora, ...] = ()
    encode: Callable[[Sequence[str]], Conditions] | None = field(default=None, repr=False)
    identity: Callable[[], str] | None = field(default=None, repr=False)
