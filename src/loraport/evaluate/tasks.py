"""What a LoRA of the tiny world was to teach, and how to see whether it did: one task a LoRA, in a registry.

A new task is one more entry in `TASKS`; nothing else has to know.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from loraport.errors import UsageError
from loraport.zoo import world

Statistic = Literal["look", "hole", "sway"]


@dataclass(frozen=True)
class Task:
    """One thing that a LoRA can teach.

    Attributes:
        style: name of the taught variant in `world.STYLES`, and of the task.
        kind: a look of the whole picture, a content, or a motion.
        statistic: which score of `loraport.evaluate.statistics` needs no learning and sees what was taught.
        hidden: prompt attributes that the variant does not show; they do not count as prompt accuracy.
        shapes: prompts are restricted to these shapes; None for all.
    """

    style: str
    kind: Literal["style", "content", "motion"]
    statistic: Statistic
    hidden: tuple[str, ...] = ()
    shapes: tuple[str, ...] | None = None

    @property
    def visible(self) -> tuple[str, ...]:
        """The prompt attributes that count, in the order of the prompt."""
        return tuple(name for name in ATTRIBUTES if name not in self.hidden)


ATTRIBUTES = ("shape", "colour", "direction", "background")

TASKS: dict[str, Task] = {
    task.style: task
    for task in (
        Task("noir", "style", "look", hidden=("colour", "background")),
        Task("outline", "style", "look", hidden=("background",)),
        Task("stripe", "style", "look", hidden=("colour", "background")),
        Task("ring", "content", "hole", shapes=("circle",)),
        Task("zigzag", "motion", "sway"),
    )
}


def get(style: str) -> Task:
    """The task of this name. Raises UsageError, with the nearest name, if there is none."""
    if style in TASKS:
        return TASKS[style]
    near = difflib.get_close_matches(style, TASKS, n=1)
    raise UsageError(
        f"there is no task for the style {style!r}",
        values=f"known: {', '.join(TASKS)}",
        fix=f"did you mean {near[0]!r}?" if near else None,
    )


def draw_prompts(task: Task, count: int, *, seed: int) -> list[world.Prompt]:
    """At most `count` different prompts of the task's shapes, in a seeded order, that no training clip showed.

    In a world that holds nothing out all prompts are drawn from. A task restricted to one shape may have fewer.
    """
    prompts = world.draw_prompts(len(world.all_prompts()), seed=seed)
    unseen = [prompt for prompt in prompts if getattr(prompt, "held_out", False)]
    fitting = [prompt for prompt in unseen or prompts if task.shapes is None or prompt.shape in task.shapes]
    return fitting[:count]
