"""The cells of a sweep: a LoRA, a target and a choice of settings each, with the recipe and the name of the output."""

import contextlib
import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.containers.names import ZOO, expert_named, named_path
from loraport.engine.many.asked import ENDINGS, is_saved, list_loras, no_lora_in
from loraport.engine.recipe import Recipe
from loraport.errors import UsageError
from loraport.sweeping.combinations import combinations_of
from loraport.sweeping.grid import Grid
from loraport.sweeping.names import distinct_paths, path_of, target_parts

_FIXED = ("source", "source_lora", "nested_source", "architecture", "force", "allow_partial")


@dataclass(frozen=True)
class Cell:
    """One transfer of a sweep.

    Attributes:
        name: TARGET/SETTINGS/LORA, the output without the folder and the ending; SETTINGS where any differ.
        lora: the file.
        target: its name.
        settings: those that differ between cells, by name.
        output: the file that is made.
        recipe: of the transfer; or why it makes no sense, as of a LoRA that is also a part of the target.
    """

    name: str
    lora: str
    target: str
    settings: Mapping[str, Any]
    output: Path
    recipe: Recipe | UsageError


def cells_of(loras: Iterable[str], grid: Grid, folder: Path, *, recursive: bool = False) -> list[Cell]:
    """Every LoRA on every target with every combination of settings, in this order.

    Of the experts of Wan2.2 each has its own LoRAs and targets: where a grid has both, what is named after one of them
    is tried with that one alone.

    Args:
        loras: files, folders, patterns, zoo:NAME; none for those of the grid.
        grid: targets and settings.
        folder: where the outputs go.
        recursive: of folders also the folders inside.

    Raises:
        UsageError: no LoRA, an unknown setting, two outputs of one name, or nothing fits together.
    """
    combinations = combinations_of(grid)
    experts = {choice.values.get("expert") for choice in combinations}
    targets = list(zip(_target_names(grid), grid.targets, strict=True))
    fixed = {name: getattr(grid, name) for name in _FIXED}
    cells: list[Cell] = []
    for lora, parts in find(list(loras) or grid.lora, folder, recursive=recursive):
        before = len(cells)
        for target, models in targets:
            for choice in combinations:
                if (_experts_of(lora, models) & experts) - {choice.values.get("expert")}:
                    continue
                inside = Path(target, *([choice.label] if choice.label else []), *parts)
                recipe: Recipe | UsageError
                try:
                    recipe = Recipe.build({**fixed, **models, **choice.values, "lora": lora})
                except UsageError as error:
                    recipe = error
                name = inside.with_suffix("").as_posix()
                cells.append(Cell(name, lora, target, choice.varied, folder / inside, recipe))
        if len(cells) == before:
            raise UsageError(
                "a LoRA is named after one expert of Wan2.2, but every target after the other",
                where=lora,
                values=", ".join(name for name, _ in targets),
                fix="add the target of this expert, or sweep one expert at a time: --expert high, then --expert low",
            )
    refused = [cell.recipe for cell in cells if isinstance(cell.recipe, UsageError)]
    if len(refused) == len(cells):
        raise refused[0]
    return cells


def _experts_of(lora: str, models: Mapping[str, Any]) -> set[str]:
    """The experts that the files of a cell are named after."""
    files = [lora, models["target"], *(each.file for each in models["target_lora"])]
    named = (expert_named(Path(file).name) for file in files if file is not None)
    return {expert for expert in named if expert is not None}


def find(loras: Sequence[str], folder: Path, *, recursive: bool = False) -> list[tuple[str, tuple[str, ...]]]:
    """The LoRAs, each once, and the parts of the name of the file that is made of each.

    Two of one name get the folders that they lie in before it, as far as these tell them apart.

    Raises:
        UsageError: there is none, or two would get one name nevertheless.
    """
    if not loras:
        raise UsageError("no LoRA is given", fix="name files, folders of them, or patterns, or set `lora` in the grid")
    found: dict[str, tuple[str, tuple[tuple[str, ...], int]]] = {}
    given = _expanded(loras)
    for lora in given:
        _refuse_without_any(Path(lora))
    for each in list_loras(given, folder, recursive=recursive):
        inside = each.output.relative_to(folder).parts
        whole = (*path_of(each.lora)[:-1], inside[-1])
        key = each.lora if each.lora.startswith(ZOO) else os.path.realpath(each.lora)
        found.setdefault(key, (each.lora, (whole, min(len(inside), len(whole)))))
    names = distinct_paths([parts for _, parts in found.values()], [lora for lora, _ in found.values()])
    return [(lora, name) for (lora, _), name in zip(found.values(), names, strict=True)]


def _expanded(loras: Sequence[str]) -> list[str]:
    """With the files and folders that patterns match, where no shell has done that."""
    found = []
    for lora in loras:
        if not glob.has_magic(lora) or os.path.lexists(named_path(lora)):
            found.append(lora)
            continue
        there = sorted(glob.glob(os.path.expanduser(lora), recursive=True))
        matched = [path for path in there if _is_lora(Path(path))]
        if not matched:
            raise UsageError(
                "no LoRA matches the pattern", values=lora, fix=f"a pattern of files that end in {', '.join(ENDINGS)}"
            )
        found += matched
    return found


def _is_lora(path: Path) -> bool:
    """Whether a pattern that matches this may mean it: a file with such an ending, or a folder as PEFT saves one."""
    return is_saved(path) if path.is_dir() else path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _refuse_without_any(path: Path) -> None:
    """A folder with nothing in it but previews and notes is no LoRA of which each cell need say so."""
    with contextlib.suppress(OSError):  # it is refused where it is opened
        if path.is_dir() and not any(each.is_dir() or each.suffix.lower() in ENDINGS for each in path.iterdir()):
            raise no_lora_in(path)


def _target_names(grid: Grid) -> list[str]:
    """A name for each target: the one that it was given, or that of its files."""
    given = [None if each is None else each.name for each in grid.target or (None,)]
    paths = []
    for name, models in zip(given, grid.targets, strict=True):
        parts = (name,) if name is not None else target_parts(models["target"], models["target_lora"])
        paths.append((parts, 1))
    told = [
        " + ".join(filter(None, (each["target"], *(one.file for one in each["target_lora"])))) for each in grid.targets
    ]
    return ["-".join(parts) for parts in distinct_paths(paths, told)]
