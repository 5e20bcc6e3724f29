"""The weights in which a naming stores layers, several in one where it fuses them: what lies where, without numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraport.errors import UnsupportedError
from loraport.models.architecture import Architecture, LayerName
from loraport.models.keymap import keymap_of
from loraport.models.placement import Part, Rows, is_whole, lay_out


@dataclass(frozen=True)
class StoredWeight:
    """A weight as a naming stores it.

    Args:
        places: the layers in it that are spoken of, each with its rows.
        shape: (rows, columns) of all of it.
    """

    places: dict[LayerName, Rows]
    shape: tuple[int, int]

    @property
    def name(self) -> LayerName:
        """The first of its layers."""
        return next(iter(self.places))


def stored_weights(
    shapes: Mapping[LayerName, tuple[int, int]], naming: str, architecture: Architecture
) -> list[StoredWeight]:
    """The weights in which a naming stores layers.

    Args:
        shapes: canonical layer -> (m, n).
        naming: of the output.
        architecture: the model.

    Raises:
        UnsupportedError: a layer is stored with others whose size is not known.
    """
    found = []
    for names in weights_of([*shapes], naming, architecture):
        held = held_in(names[0], naming, architecture)
        rows, columns = shapes[names[0]]
        places: dict[LayerName, Rows] = {names[0]: ((0, rows),)}
        if not is_whole(held):
            rows, all_places = places_in(held, {name: shapes[name][0] for name in names}, architecture)
            places = {name: all_places[name] for name in names}
        found.append(StoredWeight(places, (rows, columns)))
    return found


def weights_of(names: Sequence[str], naming: str, architecture: Architecture) -> list[list[str]]:
    """The layers by the weight that holds them in a naming, in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(architecture.family.spell(name, naming), []).append(name)
    return list(found.values())


def held_in(module: str, naming: str, architecture: Architecture) -> tuple[Part, ...]:
    """What the weight holds in which a naming stores a module."""
    family = architecture.family
    if family.template_of(module) is None:
        return (Part(module, "_"),)  # of another model, passed on as it is
    return keymap_of(family).held(family.spell(module, naming), naming)


def places_in(
    held: Sequence[Part], sizes: Mapping[str, int], architecture: Architecture
) -> tuple[int, dict[str, Rows]]:
    """How many rows a weight has, and those of each layer in it.

    Args:
        held: of `held_in`.
        sizes: rows of the layers that are spoken of.
        architecture: the model.

    Raises:
        UnsupportedError: the size of another layer in it is not known.
    """
    try:
        return lay_out(held, sizes, architecture.dimensions)
    except KeyError as error:
        raise UnsupportedError(
            "a layer is stored together with others of unknown size",
            values=f"{', '.join(sizes)} beside {error.args[0]}",
            fix="name the model (--model), or write another profile",
        ) from None
