"""What the parts of a sweep are called: short, the same every time, no two alike on any system."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport.adapters.added_lora import AddedLora
from loraport.containers.names import ZOO
from loraport.engine.many.asked import stem_of
from loraport.errors import UsageError

_LONGEST = 60
"""Characters of a value, and of the name of a target's file."""


def labelled(values: Mapping[str, Any]) -> str:
    """Settings in a word: `casa,rank=16`. The method goes without its name."""
    return ",".join(_text(value) if name == "method" else f"{name}={_text(value)}" for name, value in values.items())


def distinct_labels(labels: Sequence[str]) -> list[str]:
    """The same labels, of which those that are alike are numbered from the second on."""
    seen: Counter[str] = Counter()
    found = []
    for label in labels:
        seen[label.casefold()] += 1
        count = seen[label.casefold()]
        found.append(label if count == 1 else f"{label}~{count}")
    return found


def distinct_paths(paths: Sequence[tuple[tuple[str, ...], int]], of: Sequence[str]) -> list[tuple[str, ...]]:
    """Ends of paths that tell them apart.

    Args:
        paths: the parts of each, and how many of them its end has at least. An end that another one has as well gets
            the folder before it, and so on.
        of: what each is the path of, for the message.

    Raises:
        UsageError: two paths are the same, in whatever letters.
    """
    lengths = [length for _, length in paths]
    while True:
        ends = [parts[-length:] for (parts, _), length in zip(paths, lengths, strict=True)]
        count = Counter(_folded(end) for end in ends)
        alike = [at for at, end in enumerate(ends) if count[_folded(end)] > 1]
        if not alike:
            return ends
        longer = [at for at in alike if lengths[at] < len(paths[at][0])]
        if not longer:
            raise UsageError(
                "two outputs would get the same name",
                where="/".join(ends[alike[0]]),
                values=" and ".join(of[at] for at in alike if _folded(ends[at]) == _folded(ends[alike[0]])),
                fix="leave one out, or give each its own name",
            )
        for at in longer:
            lengths[at] += 1


def path_of(spec: str) -> tuple[str, ...]:
    """The parts of what a user names: a path, the id of a hub, zoo:NAME."""
    if spec.startswith(ZOO):
        return ("zoo", spec.removeprefix(ZOO))
    path = Path(spec).absolute() if Path(spec).exists() else Path(spec)
    parts = path.parts[1:] if path.anchor else path.parts
    return tuple(part for part in parts if part != "..") or (spec,)


def target_parts(target: str | None, added: Sequence[AddedLora]) -> tuple[str, ...]:
    """The path of a target whose last part tells its LoRAs too: `fast`, `fast+cfg@0.5`, of the source `few-step`."""
    *folders, last = path_of(target if target is not None else added[0].file if added else "source")
    names = [] if target is None else [_word(stem_of(last))]
    for each in added:
        strength = "" if each.strength == 1.0 else f"@{each.strength:g}"
        names.append(_word(stem_of(path_of(each.file)[-1])) + strength)
    return (*map(_word, folders), "+".join(names) or "source")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    return _word(f"{value:g}" if isinstance(value, float) else str(value))


def _word(text: str) -> str:
    """Without what a name cannot have on some system, or is awkward in a shell."""
    plain = re.sub(r"[.-]*[^\w.+@=-][^\w+@=]*", "-", text)[:_LONGEST].strip(".").rstrip("-")
    return re.sub(r"^-+(?!\d)", "", plain) or "_"


def _folded(parts: tuple[str, ...]) -> str:
    return "/".join(parts).casefold()
