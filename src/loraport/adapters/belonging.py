"""Which family of models a LoRA is for, going by its names and sizes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from loraport.adapters.assemble import assemble
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds.base import Piece
from loraport.adapters.pieces import sort_keys, stems_of
from loraport.adapters.shared_names import shared_title
from loraport.containers.references import TensorRef
from loraport.errors import LoraportError, UsageError
from loraport.models.architecture import Architecture, detect
from loraport.models.checkpoint import ANY, AUTO, check_architecture
from loraport.models.families import families, recognised
from loraport.models.family import Family
from loraport.models.keymap import known_to
from loraport.models.keys import MAX_LOOKED_AT


def families_of(refs: Mapping[str, TensorRef], path: Path, stated: str = AUTO) -> list[Family]:
    """The family that a LoRA is for, and those that it may as well be for; some of them only recognised.

    It is the one that knows most of the keys; in a file of very many, most of some thousand of them. Where several
    know as many (layers of the attention are called the same in many families), sizes decide.
    """
    check_architecture(stated)
    if stated == ANY:
        raise UsageError(
            "names alone say nothing without a model that has them",
            where=str(path),
            fix="name the model with --model, or leave out --architecture any",
        )
    if stated != AUTO:
        return [families()[stated]]
    sample = dict(islice(refs.items(), 0, None, 1 + len(refs) // MAX_LOOKED_AT))
    counts = Counter(name for key in sample for name in _known_to(key))
    best: list[Family] = []
    for count in sorted(set(counts.values()), reverse=True):
        most = [family for family in families().values() if counts[family.name] == count]
        best = [family for family in most if family.lookalike(sample) is None]
        best += [family for family in recognised().values() if counts[family.name] == count]
        if best:
            break
    if not best:
        # Betrayed by a name or a size, or nothing is known at all: what is said of it depends on neither.
        possible = [family for family in families().values() if family.lookalike(sample) is None]
        return (possible or list(families().values()))[:1]
    if len(best) > 1:
        fits = {family.name: own_architecture(sort_keys(sample, family)[0], family, path) for family in best}
        plausible = {name: own.plausible if own else (False, False, False) for name, own in fits.items()}
        best = [family for family in best if plausible[family.name] == max(plausible.values())]
        # Named first is the family of which most is there.
        covered = {name: own.covered if own else 0.0 for name, own in fits.items()}
        best.sort(key=lambda family: (family.only_recognised, -covered[family.name]))
    return best


def _known_to(key: str) -> frozenset[str]:
    """The names of the families that a key may belong to."""
    if key.startswith(grammar().text_encoders):
        return frozenset()
    stems = stems_of(key)
    return frozenset().union(*map(known_to, stems))


def doubts_about_family(possible: Sequence[Family]) -> list[str]:
    """A sentence where a LoRA may as well be of other families."""
    if len(possible) < 2:
        return []
    others = " or ".join(family.title for family in possible[1:])
    return [
        f"treated as a LoRA of {possible[0].title}; by its names and sizes it may be one of {others} (--model decides)"
    ]


def own_architecture(pieces: Sequence[Piece], family: Family, path: Path) -> Architecture | None:
    """What a LoRA shows of its model, if the keys are of that family; None where its parts do not fit each other."""
    try:
        done = assemble(pieces, family, None, path, scale=1.0)
    except LoraportError:
        return None
    return detect({name: layer.shape for name, layer in done.layers.items()}, family)


def title_of(refs: Mapping[str, TensorRef], tried: Family, path: Path) -> str | None:
    """What model a LoRA is for of which another family knows more keys than this one, or each that it may be for;
    None if none does."""
    found = families_of(refs, path)
    if len(sort_keys(refs, found[0])[0]) <= len(sort_keys(refs, tried)[0]):
        return None
    return shared_title(title_in(refs, family, path) for family in found)


def title_in(refs: Mapping[str, TensorRef], family: Family, path: Path) -> str:
    """What model of this family a LoRA is for, with its size where the sizes tell."""
    own = own_architecture(sort_keys(refs, family)[0], family, path)
    return family.title if own is None else own.title
