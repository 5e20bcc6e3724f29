"""How a result is used: loaded in a program, and sampled as the model that it is for wants it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TARGETS_OWN = "Use the steps, shift and guidance of the target, not those of the model the LoRA was trained on."


@dataclass(frozen=True)
class Way:
    """How to use the result in one program; code where it is typed, words where it is not.

    Attributes:
        program: its name; "" for a sentence about all.
        text: how to load the result.
        code: whether that is typed.
        sample: how to sample the model that it is for, as its authors do; "" where that is not known.
    """

    program: str
    text: str
    code: bool = True
    sample: str = ""

    @property
    def typed(self) -> bool:
        """Whether `sample` is typed."""
        return _is_code(self.sample)


def ways(load: Iterable[str], known: Mapping[str, Any] | None) -> tuple[Way, ...]:
    """Ways to use a result.

    Args:
        load: lines in which a report tells how to load it: "diffusers: pipe.load_lora_weights(...)".
        known: the values of an `engine.results.KnownModel` by name; None where the target is none.
    """
    samples = {} if known is None else known["ways"]
    found = []
    for line in load:
        program, colon, rest = line.partition(": ")
        if colon and " " not in program:
            found.append(Way(program, rest, _is_code(rest), samples.get(program, "")))
        else:
            found.append(Way("", line, code=False))
    return tuple(found)


def _is_code(text: str) -> bool:
    return "(" in text and text.split("(")[0].replace(".", "_").replace(" = ", "_").isidentifier()


def how_to_sample(known: Mapping[str, Any] | None, told: str | None) -> str:
    """How the target is sampled, in a few sentences.

    Args:
        known: as in `ways`.
        told: what files beside the target say.
    """
    if known is None:
        return f"{TARGETS_OWN} " + (
            f"Its own files say: {told}." if told else "The target's authors say how many steps."
        )
    said = (
        f"{TARGETS_OWN} By its name the target is {known['name']}. Its authors sample that like this: {known['how']} "
    )
    said += f"({known['seen']})."
    return said + (f" Its own files say: {told}." if told else "")
