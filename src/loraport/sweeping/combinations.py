"""Every combination of the settings of a grid, and what each is called."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraport.engine.rank import RankRule
from loraport.methods import DEFAULT
from loraport.sweeping.grid import AXES, Grid
from loraport.sweeping.names import distinct_labels, labelled


@dataclass(frozen=True)
class Combination:
    """Settings of a grid, one value of each.

    Attributes:
        values: by the fields of a recipe.
        varied: those that differ between the combinations, by name; settings of the method without its name.
        label: the same in a word, for the names of outputs; "" where nothing differs.
    """

    values: Mapping[str, Any]
    varied: Mapping[str, Any]
    label: str


def combinations_of(grid: Grid) -> list[Combination]:
    """Every combination of the settings of a grid, each once.

    A setting of the method that is named with its method (`casa.q_dom`) is said to that method alone.

    Raises:
        UsageError: an unknown method, profile, rank or setting of a method.
    """
    from loraport.methods import registry  # for which --help need not wait

    found: dict[str, dict[str, Any]] = {}
    for choice in grid.settings or (None,):
        axes, params = _axes_of(grid, choice)
        spoken: set[str] = set()
        for values in _product(axes):
            method = values.get("method", DEFAULT)
            own = {name: each for name, each in params.items() if _is_said_to(name, method)}
            spoken |= own.keys()
            for settings in _product(own):
                cell = values | ({"params": settings} if settings else {})
                _check(cell)
                found.setdefault(json.dumps(cell, sort_keys=True, default=str), cell)
        for name in params.keys() - spoken:  # said to none of the methods: the registry says what is wrong with that
            registry.resolve(method, {name: params[name][0]})
    return _told(list(found.values()))


def _axes_of(grid: Grid, choice: Any) -> tuple[dict[str, Sequence[Any]], dict[str, Sequence[Any]]]:
    """The values of every axis that is given, and of every setting of the method; those of the alternative win."""
    both = (grid,) if choice is None else (grid, choice)
    axes = {name: values for name in AXES for each in both if (values := getattr(each, name))}
    return axes, {name: values for each in both for name, values in each.params.items()}


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    return (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def _is_said_to(name: str, method: str) -> bool:
    from loraport.methods import registry

    owner, preset = name.rpartition(".")[0], registry.preset_of(method)
    return owner in ("", method, method if preset is None else preset.method)


def _check(values: Mapping[str, Any]) -> None:
    from loraport.adapters.dialect import check_profile
    from loraport.methods import registry

    registry.resolve(values.get("method", DEFAULT), values.get("params"))
    if "to" in values:
        check_profile(values["to"])
    if "rank" in values:
        RankRule.parse(values["rank"])


def _told(cells: list[dict[str, Any]]) -> list[Combination]:
    params = [{_short(name): value for name, value in cell.get("params", {}).items()} for cell in cells]
    flat = [{name: value for name, value in cell.items() if name != "params"} for cell in cells]
    flat = [values | own for values, own in zip(flat, params, strict=True)]
    first, *rest = AXES
    names = dict.fromkeys([first, *(name for own in params for name in own), *rest])
    differing = [name for name in names if len({repr(each.get(name, ...)) for each in flat}) > 1]
    varied = [{name: each[name] for name in differing if name in each} for each in flat]
    labels = distinct_labels([labelled(each) for each in varied])
    return [Combination(*each) for each in zip(cells, varied, labels, strict=True)]


def _short(name: str) -> str:
    """A setting of the method without the method, unless a setting of the recipe is called so (`strength`)."""
    short = name.rpartition(".")[2]
    return f"set.{short}" if short in AXES else short
