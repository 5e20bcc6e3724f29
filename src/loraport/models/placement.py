"""Where a layer lies in a stored weight: fused and split layers, and rows in another order. `joining.py` does it.

A canonical module is the finest piece that any naming has: where one naming stores the query, key and value
projections as three weights and another as one, the three are the modules, and the one is three places in the same
weight. So a module always lies in exactly one stored weight; what differs is in which of its rows. Rows in another
order (diffusers keeps the halves of some modulations the other way round) are the same thing: several ranges.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraport.containers.references import TensorRef

Rows = tuple[tuple[int, int], ...]
"""Half-open ranges of rows of a stored weight. A module is these rows, one range after the other."""


@dataclass(frozen=True)
class Place:
    """Where a naming keeps a module.

    Args:
        name: path of the stored module, with the block number as "<n>".
        index: which part of it, counted from 0, where the stored weight is fused; None where it is all of it.
        order: the equal parts of the module in the order in which they are stored; () for their own order.
        more: further parts of the stored weight, where the module is several equal pieces of it.
        turn: how many rows of each part stand together, in the symbols of the family ("head"), where the parts of the
            stored weight, all of one size, take turns; "" where each is in one piece.
    """

    name: str
    index: int | None = None
    order: tuple[int, ...] = ()
    more: tuple[int, ...] = ()
    turn: str = ""


@dataclass(frozen=True)
class Part:
    """A module inside a stored weight.

    Args:
        module: canonical path.
        rows: how many rows it has, in the symbols of the family ("width", "6*width", "3"); of a module in several
            pieces, how many each of them has.
        order: as in `Place`.
        turn: as in `Place`.
    """

    module: str
    rows: str
    order: tuple[int, ...] = ()
    turn: str = ""


def is_whole(parts: Sequence[Part]) -> bool:
    """Whether a stored weight is one module as it is."""
    return len(parts) == 1 and not parts[0].order


def split(parts: Sequence[Part], rows: int, known: Mapping[str, int]) -> dict[str, Rows] | None:
    """The rows of every module in a stored weight.

    Args:
        parts: what the weight holds, in the order of its rows.
        rows: how many rows it has.
        known: sizes that are known already, by symbol; needed only for parts of different sizes.

    Returns:
        Canonical module -> its rows; None where the rows cannot be shared out like that.
    """
    sizes = _sizes([part.rows for part in parts], rows, known)
    return None if sizes is None else _placed(parts, sizes, known)


def lay_out(parts: Sequence[Part], sizes: Mapping[str, int], known: Mapping[str, int]) -> tuple[int, dict[str, Rows]]:
    """The other way round: how many rows a stored weight has, and where in it every module lies.

    Args:
        parts: what the weight holds, in the order of its rows.
        sizes: canonical module -> its rows, for some of the modules.
        known: sizes by symbol, for the others.

    Raises:
        KeyError: the rows of a module are given by neither.
    """
    times = Counter(part.module for part in parts)
    sizes = {module: size // times[module] for module, size in sizes.items() if module in times}
    known = {**known, **{part.rows: sizes[part.module] for part in parts if part.module in sizes}}
    found = [sizes.get(part.module) or size_of(part.rows, known) for part in parts]
    for part, size in zip(parts, found, strict=True):
        if size is None:
            raise KeyError(part.module)
    rows = [size or 0 for size in found]
    placed = _placed(parts, rows, known)
    if placed is None:
        raise KeyError(parts[0].module)
    return sum(rows), placed


def take_ref(ref: TensorRef, rows: Rows) -> TensorRef:
    """A reference to the rows of one module. `rows` that are the whole tensor in its own order change nothing."""
    if rows == ((0, ref.shape[0]),):
        return ref
    return replace(ref, shape=(sum(end - start for start, end in rows), *ref.shape[1:]), rows=rows)


def size_of(symbol: str, known: Mapping[str, int]) -> int | None:
    """A size in the symbols of a family as a number: "3", "width", "6*width". None for "_" and what is not known."""
    factor, _, name = symbol.rpartition("*")
    if name.isdigit():
        return int(name)
    return known[name] * int(factor or 1) if name in known else None


def _sizes(symbols: Sequence[str], total: int, known: Mapping[str, int]) -> list[int] | None:
    """Numbers for the symbols that add up to the total. One symbol follows from the others."""
    names = {symbol.rpartition("*")[2] for symbol in symbols if size_of(symbol, {}) is None}
    unknown = names if len(names) == 1 else names - known.keys()
    if len(unknown) > 1:
        return None
    sizes = dict(known)
    if unknown:
        name = next(iter(unknown))
        rest = {key: size for key, size in known.items() if key != name}
        fixed = sum(size_of(symbol, rest) or 0 for symbol in symbols)
        times = sum(int(symbol.rpartition("*")[0] or 1) for symbol in symbols if symbol.rpartition("*")[2] == name)
        if total <= fixed or (total - fixed) % times:
            return None
        sizes[name] = (total - fixed) // times
    found = [size_of(symbol, sizes) or 0 for symbol in symbols]
    return found if sum(found) == total else None


def _placed(parts: Sequence[Part], sizes: Sequence[int], known: Mapping[str, int]) -> dict[str, Rows] | None:
    """The rows of every part of these sizes; None where a part cannot be divided as it says."""
    found: dict[str, Rows] = {}
    start = 0
    for position, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        if part.turn:
            ranges = _turns(position, len(parts), size, size_of(part.turn, known)) if len(set(sizes)) == 1 else None
        else:
            ranges = _ordered(start, size, part.order)
        if ranges is None:
            return None
        found[part.module] = found.get(part.module, ()) + ranges
        start += size
    return found


def _turns(position: int, parts: int, size: int, turn: int | None) -> Rows | None:
    """The rows of one of several parts of one size that take turns: `turn` rows of the first, of the second, ..."""
    if not turn or size % turn:
        return None
    stride = parts * turn
    return tuple((at, at + turn) for at in range(position * turn, parts * size, stride))


def _ordered(start: int, size: int, order: Sequence[int]) -> Rows | None:
    """The equal parts of a module, each where it is stored: as ranges in the module's own order."""
    if not order:
        return ((start, start + size),)
    if size % len(order):
        return None
    step = size // len(order)
    stored_at = {part: start + position * step for position, part in enumerate(order)}
    return tuple((stored_at[part], stored_at[part] + step) for part in range(len(order)))
