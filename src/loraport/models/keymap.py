"""From any spelling of a module to its canonical path, by tables built from the model's real modules.

Flattened names cannot be un-flattened by rule (`self_attn`, `k_img`, `to_out.0` hold underscores and
digits of their own), so every spelling of every module is written out once and looked up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

from loraport.errors import LoraportError
from loraport.models.family import Family, block_of
from loraport.models.keys import key_rules

MAX_BLOCKS = 64  # the deepest model of any family here has 40


@dataclass(frozen=True)
class Resolved:
    """A module path as written, taken apart: prefix, canonical module, and the namings that write it so."""

    prefix: str
    flat: bool
    module: str
    spelled: str
    namings: frozenset[str]
    expert: str | None = None


@dataclass(frozen=True)
class KeyMap:
    """Spelling tables of a model: dotted and flattened paths -> (canonical module, namings)."""

    dotted: dict[str, tuple[str, frozenset[str]]]
    flat: dict[str, tuple[str, frozenset[str]]]

    def resolve(self, path: str) -> Resolved | None:
        """Take a module path with its prefix apart, or None if it names no module of the model."""
        rules = key_rules()
        for prefix, expert in rules.experts.items():
            if path.startswith(prefix) and path[len(prefix) :] in self.dotted:
                return self._hit(prefix, path[len(prefix) :], False, expert)
        for prefix in rules.prefixes:
            if path.startswith(prefix) and path[len(prefix) :] in self.dotted:
                return self._hit(prefix, path[len(prefix) :], False)
        if path in self.dotted:
            return self._hit("", path, False)
        for prefix in rules.flat_prefixes:
            rest = path[len(prefix) :]
            if path.startswith(prefix) and rest.replace(".", "_") in self.flat:
                return self._hit(prefix, rest.replace(".", "_"), True)
        return None

    def nearest(self, path: str) -> str | None:
        """The known spelling most like an unknown path, with the path's own prefix, or None."""
        rules = key_rules()
        prefixes = (*rules.experts, *rules.prefixes, *rules.flat_prefixes, "")
        prefix = next(prefix for prefix in prefixes if path.startswith(prefix))
        rest = path[len(prefix) :]
        table = self.flat if prefix in rules.flat_prefixes else self.dotted
        # Only the same block comes near; that keeps the search short on a model with forty of them.
        digits = next((piece for piece in rest.replace("_", ".").split(".") if piece.isdigit()), "")
        near = [name for name in table if digits in name.replace("_", ".").split(".")] or list(table)
        close = get_close_matches(rest, near, n=1, cutoff=0.5)
        return prefix + close[0] if close else None

    def _hit(self, prefix: str, spelled: str, flat: bool, expert: str | None = None) -> Resolved:
        module, namings = (self.flat if flat else self.dotted)[spelled]
        return Resolved(prefix, flat, module, spelled, namings, expert)


def build(modules: Iterable[str], family: Family) -> KeyMap:
    """Tables for the given canonical modules.

    Raises:
        LoraportError: two modules share a spelling, so that names could not be told apart. The tables of the
            families that are built in are tested against this; it guards new yaml files.
    """
    dotted: dict[str, tuple[str, frozenset[str]]] = {}
    flat: dict[str, tuple[str, frozenset[str]]] = {}
    for module in modules:
        for naming in family.namings:
            spelled = family.spell(module, naming)
            _add(dotted, spelled, module, naming)
            _add(flat, spelled.replace(".", "_"), module, naming)
    blocks = sorted({block_of(module) for module in modules})
    known = {module for module, _ in dotted.values()}
    for alias, name in family.aliases.items():
        for block in blocks if "<n>" in alias else [""]:
            module = name.replace("<n>", block)
            if module in known:
                spelled = alias.replace("<n>", block)
                _add(dotted, spelled, module, "mixed")
                _add(flat, spelled.replace(".", "_"), module, "mixed")
    return KeyMap(dotted, flat)


@lru_cache(maxsize=8)
def family_keymap(name: str) -> KeyMap:
    """Tables for the largest model that a family is expected to have."""
    from loraport.models.family import families

    family = families()[name]
    return build(family.modules(MAX_BLOCKS), family)


def _add(table: dict[str, tuple[str, frozenset[str]]], spelled: str, module: str, naming: str) -> None:
    known = table.get(spelled)
    if known is not None and known[0] != module:
        raise LoraportError(f"{spelled} would name two modules", values=f"{known[0]} and {module}")
    namings = known[1] if known else frozenset()
    table[spelled] = (module, namings | {naming})
