"""Where everything of a file goes in a copy of it in which some tensors are stored in another way, or are left out.

Only the header is made anew, and only as far as it says places, names and formats; what it says of the tensors that
stay, and their bytes, are those of the original. Torch files have no such header (`retorch.py`).
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from loraport.containers.access import open_file, status
from loraport.containers.dtypes import FORMATS
from loraport.containers.gguf import place_in_header, read_gguf
from loraport.containers.safetensors import parse_entries
from loraport.containers.stored import TensorRef, list_stored, span_of
from loraport.errors import UnsupportedError

Places = Mapping[tuple[tuple[str, ...], str], tuple[int, int]]


@dataclass(frozen=True)
class Put:
    """A tensor that gets other numbers.

    Args:
        ref: which, whole, as it lies in the original; its companions are not looked at.
        key: its name in the copy.
        dtype: its number format there.
        shape: its shape there.
    """

    ref: TensorRef
    key: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def in_place(cls, ref: TensorRef) -> "Put":
        """One that keeps name, format and shape."""
        return cls(ref, ref.key, ref.dtype, ref.shape_in_file)

    @property
    def name(self) -> tuple[tuple[str, ...], str]:
        """Its nest and key in the original."""
        return self.ref.nest, self.ref.key

    @property
    def moves(self) -> bool:
        """Whether its name or its format is another one."""
        return (self.key, self.dtype) != (self.ref.key, self.ref.dtype)

    @property
    def nbytes(self) -> int:
        """Its size in the copy, in bytes."""
        return prod(self.shape) * FORMATS[self.dtype].item_bytes


@dataclass(frozen=True)
class Run:
    """Bytes of the original, from `start` to `end`, that lie at `to` in the copy."""

    start: int
    end: int
    to: int


@dataclass(frozen=True)
class Arrangement:
    """Where everything goes.

    Args:
        written: bytes that are made anew, by their place: the header, and what fills up to the next tensor.
        runs: what is copied, in the order of the copy.
        places: where each tensor that is put begins and ends, by its nest and key in the original.
        size: of the copy, in bytes.
    """

    written: Mapping[int, bytes]
    runs: tuple[Run, ...]
    places: Places
    size: int


def arranged(
    source: Path, puts: Sequence[Put], dropped: Sequence[TensorRef], metadata: Mapping[str, str] | None
) -> Arrangement:
    """Where everything of a file goes.

    Args:
        source: the original.
        puts: the tensors that get other numbers.
        dropped: the tensors that are left out.
        metadata: the texts of the header of a safetensors file, in order; None leaves them alone, as in other files.

    Raises:
        FileError: the original cannot be read, or is another one now.
    """
    size = status(source).st_size
    if not dropped and not any(put.moves for put in puts):
        return _in_place(source, size, puts, metadata)
    containers = {ref.container for ref in (*(put.ref for put in puts), *dropped)}
    if containers == {"gguf"}:
        assert not dropped
        return _gguf(source, puts)
    assert containers == {"safetensors"}
    return _safetensors(source, size, puts, dropped, metadata)


def refuse_shared(refs: Sequence[TensorRef]) -> None:
    """Raise UnsupportedError where one of these tensors of a torch file shares its bytes with another one.

    Args:
        refs: the tensors that will be changed, whole.
    """
    for file in {ref.file for ref in refs if ref.container == "torch"}:
        mine = {(ref.nest, ref.key) for ref in refs if ref.file == file}
        places: list[tuple[int, int, bool, TensorRef]] = []
        for group in list_stored(file).groups.values():
            for ref in group.values():
                span = span_of(ref)
                places += [(span.start, span.end, (ref.nest, ref.key) in mine, ref)] if span.end > span.start else []
        places.sort(key=lambda place: place[:2])
        for (_, end, changed, ref), (start, _, changes, other) in itertools.pairwise(places):
            if start < end and (changed or changes):
                raise UnsupportedError(
                    "two tensors of the torch file share their numbers, so one cannot be changed without the other",
                    where=str(file),
                    values=f"{'/'.join((*ref.nest, ref.key))} and {'/'.join((*other.nest, other.key))}",
                    fix="save only the weights you need, preferably as safetensors",
                )


def _in_place(source: Path, size: int, puts: Sequence[Put], metadata: Mapping[str, str] | None) -> Arrangement:
    """All tensors stay where they are, behind a header that may be longer."""
    written: dict[int, bytes] = {}
    begin = shift = 0
    if metadata is not None:
        with open_file(source) as file:
            entries, begin = parse_entries(file, size, str(source))
        written[0] = _header(entries, metadata)
        shift = len(written[0]) - begin
    spans = {put.name: span_of(put.ref) for put in puts}
    runs = []
    for start, end in [*sorted((span.start, span.end) for span in spans.values()), (size, size)]:
        if begin < start:
            runs.append(Run(begin, start, begin + shift))
        begin = max(begin, end)
    places = {name: (span.start + shift, span.end + shift) for name, span in spans.items()}
    return Arrangement(written, tuple(runs), places, size + shift)


def _safetensors(
    source: Path, size: int, puts: Sequence[Put], dropped: Sequence[TensorRef], metadata: Mapping[str, str] | None
) -> Arrangement:
    """Tensors in the order of the size of their numbers, as the stock writer has it: each then begins at a multiple of
    that, which readers that map the file rely on. Those of one size stay in their order."""
    with open_file(source) as file:
        entries, base = parse_entries(file, size, str(source))
    texts = entries.pop("__metadata__", None)
    changed = {put.ref.key: put for put in puts}
    gone = {ref.key for ref in dropped}
    for put in puts:
        span_of(put.ref)  # raises where it is another file by now
    kept: list[tuple[int, int, str, dict[str, object]]] = []
    for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        if key in changed:
            put = changed[key]
            said = {**entry, "dtype": put.dtype, "shape": list(put.shape)}
            kept.append((FORMATS[put.dtype].item_bytes, put.nbytes, key, said))
        elif key not in gone:
            count = prod(entry["shape"])
            kept.append(((end - start) // count if count else 1, end - start, key, entry))
    kept.sort(key=lambda item: -item[0])
    ordered: dict[str, object] = {}
    position = 0
    begins: dict[str, int] = {}
    for _, nbytes, key, entry in kept:
        begins[key] = position
        name = changed[key].key if key in changed else key
        ordered[name] = entry | {"data_offsets": [position, position + nbytes]}
        position += nbytes
    header = _header(ordered, metadata if metadata is not None else texts)
    runs = _joined(
        Run(base + start, base + end, len(header) + begins[key])
        for key in begins
        if key not in changed
        for start, end in [entries[key]["data_offsets"]]
    )
    begin = len(header)
    places = {put.name: (begin + begins[key], begin + begins[key] + put.nbytes) for key, put in changed.items()}
    return Arrangement({0: header}, runs, places, len(header) + position)


def _gguf(source: Path, puts: Sequence[Put]) -> Arrangement:
    """Tensors in their order, each moved by what those before it have grown. The header keeps its length, since
    nothing but formats and places is another one."""
    found = read_gguf(source)
    with open_file(source) as file:
        header = bytearray(file.read(found.base))
    changed = {put.ref.key: put for put in puts}
    written: dict[int, bytes] = {}
    runs, places = [], {}
    position = found.base
    for key, tensor in sorted(found.tensors.items(), key=lambda item: (item[1].span.start, item[1].span.end)):
        span, put = tensor.span, changed.get(key)
        place_in_header(header, tensor, position - found.base, None if put is None else put.dtype)
        if put is None:
            runs.append(Run(span.start, span.end, position))
        else:
            span_of(put.ref)
            places[put.name] = position, position + put.nbytes
        end = position + (span.end - span.start if put is None else put.nbytes)
        position = found.base + -(-(end - found.base) // found.alignment) * found.alignment
        if end < position:
            written[end] = bytes(position - end)
    return Arrangement({0: bytes(header)} | written, _joined(runs), places, position)


def _header(entries: Mapping[str, object], metadata: Mapping[str, str] | None) -> bytes:
    """The header of a safetensors file."""
    tensors = {key: entry for key, entry in entries.items() if key != "__metadata__"}
    texts = {} if metadata is None else {"__metadata__": dict(metadata)}
    text = json.dumps(texts | tensors, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The same with neighbours that stay neighbours as one."""
    found: list[Run] = []
    for run in runs:
        if run.start == run.end:
            continue
        last = found[-1] if found else None
        if last is not None and (last.end, last.to + last.end - last.start) == (run.start, run.to):
            found[-1] = Run(last.start, run.end, last.to)
        else:
            found.append(run)
    return tuple(found)
