"""What is there of a cell already: finished, begun, or somebody's file that is not ours to replace."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from loraport.containers.references import file_identity
from loraport.engine.recipe import Recipe
from loraport.errors import FileError, LoraportError
from loraport.files import file_digest
from loraport.sweeping.index import Row, recipe_json

Standing = Literal["open", "begun", "done"]
_OTHERWISE = "name another folder with -o, or add --overwrite"
_ALLOWED = ("force", "allow_partial")
"""Settings that are advised where a cell is refused. What was made without them needed none, and is the same with them.
"""


def standing_of(output: Path, recipe: Recipe, row: Row | None, state_of: Callable[[str], str | None]) -> Standing:
    """Whether a cell is to be worked on.

    Args:
        output: of the cell.
        recipe: likewise.
        row: what the index in the folder says of its output; None where it says nothing.
        state_of: `state_now`, which may remember what it found.

    Returns:
        "open" where there is no output, "begun" where a sweep that was killed left one before it could say so, "done"
        where the output is the one that this recipe makes of these inputs.

    Raises:
        FileError: there is an output that is none of these.
    """
    if not os.path.lexists(output):
        return "open"
    if row is None or row.state == "failed":
        raise FileError("the output file already exists", where=str(output), fix=_OTHERWISE)
    now, before = recipe_json(recipe), row.recipe or {}
    other = [name for name, value in now.items() if before.get(name) != value]
    differing = [name for name in other if name not in _ALLOWED or not now[name]]
    if differing:
        raise FileError(
            "the output was made by an earlier sweep with other settings",
            where=str(output),
            values=", ".join(f"{name}: {before.get(name)!r}, now {now[name]!r}" for name in differing[:3]),
            fix=_OTHERWISE,
        )
    if row.state == "pending":
        return "begun"
    changed = [file for file, state in row.files.items() if state_of(file) != state]
    if changed:
        raise FileError(
            "an input has changed since the output was made", where=str(output), values=changed[0], fix=_OTHERWISE
        )
    if state_of(str(output)) != row.identity and file_digest(output) != row.sha256:
        raise FileError("the output is not the file that the sweep made", where=str(output), fix=_OTHERWISE)
    return "done"


def state_now(file: str) -> str | None:
    """The state of a file (`file_identity`); None where it is gone."""
    try:
        return file_identity(Path(file))
    except LoraportError:
        return None
