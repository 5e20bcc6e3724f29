"""What a LoRA of the tiny world was to teach, and how to see whether it did: one task a LoRA, in a registry.

A new task is one more entry in `TASKS`; nothing else has to know.
"""

from dataclasses import dataclass
from typing import Literal

from loraport.errors import UsageError, one_of
from loraport.zoo import world

Statistic = Literal["look", "hole", "sway"]


@dataclass(frozen=True)
class LoraTask:
    """One thing that a LoRA can teach.

    Attributes:
        style: name of the taught variant in `world.STYLES`, and of the task.
        kind: a look of the whole picture, a content, or a motion.
        statistic: which score of `loraport.evaluate.statistics` needs no learning and sees what was taught.
        hidden: prompt attributes that the variant does not show; they do not count as prompt accuracy.
        shape: prompts are restricted to this shape; None for all. One shape has too few held-out prompts to measure on,
            so such a LoRA is taught on a third of the others only.
    """

    style: str
    kind: Literal["style", "content", "motion"]
    statistic: Statistic
    hidden: tuple[str, ...] = ()
    shape: str | None = None

    @property
    def visible(self) -> tuple[str, ...]:
        """The prompt attributes that count, in the order of the prompt."""
        return tuple(name for name in ATTRIBUTES if name not in self.hidden)

    def teaches(self, prompt: world.Prompt) -> bool:
        """Whether training clips of the LoRA may show what it teaches with this prompt."""
        if prompt.held_out:
            return False
        return self.shape is None or (prompt.shape == self.shape and sum(prompt.indices) % 3 == 0)

    def asks(self, prompt: world.Prompt) -> bool:
        """Whether the LoRA is measured on this prompt: it should act, and its training has not shown it there."""
        return not self.teaches(prompt) and (prompt.shape == self.shape if self.shape else prompt.held_out)


ATTRIBUTES = ("shape", "colour", "direction", "background")

TASKS: dict[str, LoraTask] = {
    task.style: task
    for task in (
        LoraTask("noir", "style", "look", hidden=("colour", "background")),
        LoraTask("outline", "style", "look", hidden=("background",)),
        LoraTask("stripe", "style", "look", hidden=("colour", "background")),
        LoraTask("ring", "content", "hole", shape="circle"),
        LoraTask("zigzag", "motion", "sway"),
    )
}


def get(style: str) -> LoraTask:
    """The task of this name. Raises UsageError, with the nearest name, if there is none."""
    if style in TASKS:
        return TASKS[style]
    raise UsageError(f"there is no task for the style {style!r}", fix=one_of(style, TASKS))


def draw_prompts(task: LoraTask, count: int, *, seed: int) -> list[world.Prompt]:
    """At most `count` different prompts that the task asks for, in a seeded order. A task may have fewer."""
    return [prompt for prompt in world.draw_prompts(len(world.all_prompts()), seed=seed) if task.asks(prompt)][:count]
