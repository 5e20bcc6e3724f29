"""Tensors as they lie in files: references to them, and where their bytes are. Headers only, and no torch.

What the bytes mean is the business of the codecs. `references.py` puts the two together for all that asks for names,
shapes and formats, `tensors.py` for what wants the numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

from loraport.containers.access import open_file, read_begin, status, unreadable
from loraport.containers.dtypes import FORMATS
from loraport.containers.gguf import MAGIC, GgufTensor, read_gguf
from loraport.containers.names import TORCH_ENDINGS
from loraport.containers.safetensors import CHUNK_BYTES, Span, read_header
from loraport.containers.sent import bytes_sent, state_sent
from loraport.errors import FileError, UnsupportedError


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a file, without its data: what plans are made of. Cheap to pickle.

    Args:
        file: the file that holds it.
        key: its name there, as written.
        shape: its shape; with `rows` the shape of the slice.
        dtype: safetensors spelling, "BF16", "F32", ...; that of GGUF for its own formats, "Q8_0", ...
        container: "safetensors", "torch" or "gguf".
        nest: names that lead to the mapping with `key` in a torch file.
        rows: half-open ranges of rows of a fused weight, in the order in which they follow each other here; or None
            for all of it as it is.
        codec: how its bytes become numbers; "raw" where they are numbers already.
        companions: further tensors that the codec needs, by their role, such as a scale.
        stored_shape: the shape of all of it in the file, where several numbers share bytes and it is another one.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    container: str = "safetensors"
    nest: tuple[str, ...] = ()
    rows: tuple[tuple[int, int], ...] | None = None
    codec: str = "raw"
    companions: tuple[tuple[str, "TensorRef"], ...] = ()
    stored_shape: tuple[int, ...] | None = None

    @property
    def shape_in_file(self) -> tuple[int, ...]:
        """Its shape as it lies in the file: of bytes, where several numbers share them."""
        return self.shape if self.stored_shape is None else shape_of_rows(self.stored_shape, self.rows)

    @property
    def own_bytes(self) -> int:
        """Size as stored, in bytes, without companions."""
        known = FORMATS.get(self.dtype)
        return prod(self.shape_in_file) * (1 if known is None else known.item_bytes)

    @property
    def nbytes(self) -> int:
        """Size as stored, in bytes."""
        return self.own_bytes + sum(companion.nbytes for _, companion in self.companions)

    @property
    def stored_as(self) -> str:
        """Number format and codec, for people: "BF16", "F8_E4M3, scaled"."""
        return self.dtype if self.codec == "raw" else f"{self.dtype}, {self.codec}"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold it and its companions, each once."""
        return tuple(dict.fromkeys((self.file, *(companion.file for _, companion in self.companions))))

    @property
    def name(self) -> str:
        """File and key, for messages."""
        return f"{'/'.join((*self.nest, self.key))} in {self.file}"


Group = dict[str, TensorRef]


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file, or of the files of one model: of torch files a group for every nested mapping, else one
    group `()`. `notes` are remarks for the user on how it was found."""

    path: Path
    container: str
    groups: dict[tuple[str, ...], Group]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def list_stored(path: Path) -> TensorFile:
    """List the tensors of a safetensors, torch or GGUF file as they are stored, without reading their data.

    Raises:
        FileError: missing, damaged, or unsafe to load.
        UnsupportedError: tensors of a type, or a GGUF file of a version, that is not known.
    """
    path = Path(path)
    begin = read_begin(path, 256)
    _refuse_stand_in(path, begin)
    if begin[:4] == MAGIC:
        found = read_gguf(path)
        refs = {key: _gguf_ref(path, key, tensor) for key, tensor in found.tensors.items()}
        return TensorFile(path, "gguf", {(): refs}, found.metadata)
    if begin[:4] == b"PK\x03\x04" or path.suffix in TORCH_ENDINGS:
        groups = {
            nest: {key: _ref(path, key, span, "torch", nest) for key, span in group.items()}
            for nest, group in _torch_groups(path).items()
        }
        return TensorFile(path, "torch", groups, {})
    header = read_header(path)
    refs = {key: _ref(path, key, span, "safetensors", ()) for key, span in header.spans.items()}
    return TensorFile(path, "safetensors", {(): refs}, header.metadata)


def is_contiguous(ref: TensorRef) -> bool:
    """Whether a tensor's numbers follow each other in the file. Raises FileError."""
    return bytes_sent(ref) is not None or span_of(ref).strides is None


def pour(ref: TensorRef, target: memoryview) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor piece by piece, one behind the other in the same memory, and from its beginning
    again where that is full. Companions are not looked at.

    Args:
        ref: which tensor.
        target: where the bytes go; no piece is longer.

    Raises:
        FileError: the file is gone, damaged, or changed since the reference was made.
    """
    sent = bytes_sent(ref)
    if sent is not None:
        for start in range(0, len(sent), len(target) or 1):
            part = target[: len(sent) - start]
            part[:] = sent.data[start : start + len(part)]
            yield part
        return
    pieces, filled = pieces_of(ref, span_of(ref)), 0
    with open_file(ref.file) as file:
        for start, size in pieces:
            done = 0
            while done < size:
                part = target[filled : filled + size - done]
                fill(file, start + done, part, ref.name)
                done, filled = done + len(part), (filled + len(part)) % len(target)
                yield part


def read_bytes(ref: TensorRef) -> bytes:
    """The bytes of a small tensor. Raises FileError; UnsupportedError where they do not follow each other."""
    if not is_contiguous(ref):
        raise UnsupportedError("a small tensor is stored in pieces", where=ref.name, fix="save it as safetensors")
    return b"".join(map(bytes, pour(ref, memoryview(bytearray(ref.own_bytes)))))


def identifying(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What of a tensor is hashed before its bytes."""
    return f"{dtype} {list(shape)}\n".encode()


def file_identity(path: str | Path) -> str:
    """A line that changes when the file does: resolved path, size, times, inode. Raises FileError.

    The time of the last change of the inode is in it, which a program cannot set back, so a file that was rewritten
    and given its old modification time is seen. A change through a shared mapping moves the times only when the
    system writes it out, and is not seen before.
    """
    sent = state_sent(Path(path))
    if sent is not None:
        return sent
    stat = status(Path(path))
    return f"{Path(path).resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def _torch_groups(path: Path) -> dict[tuple[str, ...], dict[str, Span]]:
    # A torch file is listed by torch; who has none of these does not wait for it.
    from loraport.containers.torch_zip import read_groups

    return read_groups(path)


def _ref(path: Path, key: str, span: Span, container: str, nest: tuple[str, ...]) -> TensorRef:
    return TensorRef(path, key, span.shape, span.dtype, container, nest)


def _gguf_ref(path: Path, key: str, tensor: GgufTensor) -> TensorRef:
    plain = tensor.span.dtype in FORMATS
    stored_shape = None if plain else tensor.span.shape
    return TensorRef(path, key, tensor.shape, tensor.span.dtype, "gguf", stored_shape=stored_shape)


def _find(ref: TensorRef) -> Span | None:
    if ref.container == "torch":
        return _torch_groups(ref.file).get(ref.nest, {}).get(ref.key)
    if ref.container == "gguf":
        found = read_gguf(ref.file).tensors.get(ref.key)
        return None if found is None else found.span
    return read_header(ref.file).spans.get(ref.key)


def span_of(ref: TensorRef) -> Span:
    """Where the tensor lies; of a fused one where all of it lies."""
    span = _find(ref)
    found = None if span is None else span.shape
    if ref.rows is not None and found:
        if any(not 0 <= start <= end <= found[0] for start, end in ref.rows):
            raise FileError("the rows asked for do not exist", where=ref.name, values=f"{ref.rows} of {list(found)}")
        found = found if ref.stored_shape is not None else shape_of_rows(found, ref.rows)
    if span is None or span.dtype != ref.dtype or found != (ref.stored_shape or ref.shape):
        raise FileError(
            "the file changed since it was first looked at",
            where=ref.name,
            values=f"{ref.dtype} {list(ref.shape)} expected, "
            + ("nothing there now" if span is None else f"{span.dtype} {list(span.shape)} found"),
            fix="run the command again",
        )
    return span


def shape_of_rows(shape: tuple[int, ...], rows: tuple[tuple[int, int], ...] | None) -> tuple[int, ...]:
    """The shape of some rows of a tensor; None for all of it."""
    return shape if rows is None else (sum(end - start for start, end in rows), *shape[1:])


def pieces_of(ref: TensorRef, span: Span) -> list[tuple[int, int]]:
    """A contiguous tensor's bytes in the file, in pieces of bounded size: where each begins, and how long it is."""
    row = (span.end - span.start) // max(span.shape[0], 1) if span.shape else 0
    rows = [(0, span.end - span.start)] if ref.rows is None else [(a * row, b * row) for a, b in ref.rows]
    return [
        (span.start + position, min(CHUNK_BYTES, end - position))
        for start, end in rows
        for position in range(start, end, CHUNK_BYTES)
    ]


def fill(file: FileIO, offset: int, target: memoryview, name: str) -> None:
    """Read bytes from a place in the file. Raises FileError where there are not so many.

    Args:
        file: open for reading.
        offset: where they begin.
        target: where they go.
        name: what is read, for messages.
    """
    done = 0
    while done < len(target):
        try:
            file.seek(offset + done)
            count = file.readinto(target[done:])
        except OSError as error:
            raise unreadable(Path(file.name), error) from None
        if not count:
            raise FileError("the file is cut short", where=name, values=f"{done:,} of {len(target):,} bytes")
        done += count


def _refuse_stand_in(path: Path, begin: bytes) -> None:
    """What downloads leave behind under the right name when they go wrong."""
    if begin.startswith(b"version https://git-lfs"):
        raise FileError(
            "this is a Git LFS pointer, not the file itself",
            where=str(path),
            fix="run git lfs pull, or download the file itself",
        )
    if b"\0" in begin[:8]:
        return  # the length of a header, whose upper bytes are zero; text has none
    if begin.lstrip()[:1] == b"<":
        raise FileError(
            "this is a web page, not a tensor file",
            where=str(path),
            values=f"it begins with {begin.decode('utf-8', 'replace').split()[0][:80]!r}",
            fix="download the file itself; some files need a log-in or an accepted licence",
        )
    if begin.lstrip()[:1] in (b"{", b"["):
        raise FileError(
            "this is JSON, such as a server sends with an error, not a tensor file",
            where=str(path),
            values=f"it begins with {begin.decode('utf-8', 'replace').strip()[:120]!r}",
            fix="download the file itself; some files need a log-in or an accepted licence",
        )
