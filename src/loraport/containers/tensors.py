"""References to tensors in files, and reading them one at a time in bounded memory."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from io import FileIO
from math import prod
from pathlib import Path

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.dtypes import FORMATS, name_of
from loraport.containers.safetensors import SafetensorsHeader, Span, read_header
from loraport.containers.torch_zip import read_groups
from loraport.errors import FileError, NumericalError, UnsupportedError

CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a file, without its data: what plans are made of. Cheap to pickle.

    Args:
        file: the file that holds it.
        key: its name there, as written.
        shape: its shape; with `rows` the shape of the slice.
        dtype: safetensors spelling, "BF16", "F32", ...
        container: "safetensors" or "torch".
        nest: names that lead to the mapping with `key` in a torch file.
        rows: half-open ranges of rows of a fused weight, in the order in which they follow each other here; or None
            for all of it as it is.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    container: str = "safetensors"
    nest: tuple[str, ...] = ()
    rows: tuple[tuple[int, int], ...] | None = None

    @property
    def nbytes(self) -> int:
        """Size as stored, in bytes."""
        known = FORMATS.get(self.dtype)
        return prod(self.shape) * (1 if known is None else known.item_bytes)

    @property
    def name(self) -> str:
        """File and key, for messages."""
        return f"{'/'.join((*self.nest, self.key))} in {self.file}"


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file: for torch files a group for every nested mapping, else one group `()`."""

    path: Path
    container: str
    groups: dict[tuple[str, ...], dict[str, TensorRef]]
    metadata: dict[str, str]


def open_tensors(path: Path) -> TensorFile:
    """List the tensors of a safetensors or torch file without reading their data.

    Raises:
        FileError: missing, damaged, or unsafe to load.
        UnsupportedError: GGUF, or tensors of a type that is not known.
    """
    path = Path(path)
    begin = _begin(path)
    _refuse_stand_in(path, begin)
    if begin[:4] == b"GGUF":
        raise UnsupportedError(
            "GGUF files are not supported yet", where=str(path), fix="use a bf16, fp16 or fp32 safetensors file"
        )
    if begin[:4] == b"PK\x03\x04" or path.suffix in {".pt", ".pth", ".ckpt", ".bin"}:
        groups = {
            nest: {key: _ref(path, key, span, "torch", nest) for key, span in group.items()}
            for nest, group in read_groups(path).items()
        }
        return TensorFile(path, "torch", groups, {})
    header: SafetensorsHeader = read_header(path)
    refs = {key: _ref(path, key, span, "safetensors", ()) for key, span in header.spans.items()}
    return TensorFile(path, "safetensors", {(): refs}, header.metadata)


def read_tensor(ref: TensorRef) -> Shaped[Tensor, "..."]:
    """Read one tensor in its stored dtype to the CPU; peak memory is the tensor itself.

    Raises:
        FileError: the file is gone, damaged, or changed since the reference was made.
        UnsupportedError: a dtype that torch cannot hold.
    """
    return _read(ref, None)


def read_float(ref: TensorRef) -> Float32[Tensor, "..."]:
    """Read one tensor as float32. Raises NumericalError, by name, where it holds NaN or infinity."""
    return _finite(_read(ref, None), ref)


def read_float_with_digest(ref: TensorRef) -> tuple[Float32[Tensor, "..."], str]:
    """`read_float(ref)` and `digest(ref)` of one and the same read: what is hashed is what is returned.

    Raises:
        FileError, UnsupportedError, NumericalError: as `read_float`.
    """
    state = hashlib.sha256()
    tensor = _read(ref, state)
    return _finite(tensor, ref), state.hexdigest()


def _read(ref: TensorRef, state: "hashlib._Hash | None") -> Shaped[Tensor, "..."]:
    """The stored tensor; `state` is fed with what `digest` hashes, while it is read."""
    span = _locate(ref)
    known = FORMATS.get(ref.dtype)
    if known is None:
        raise UnsupportedError(
            f"{ref.key} has a number format that is not known", where=str(ref.file), values=ref.dtype
        )
    if state is not None:
        state.update(_digest_head(ref.dtype, ref.shape))
    if span.strides is not None:
        stored = torch.empty(span.end - span.start, dtype=torch.uint8)
        with _open(ref.file) as file:
            _fill(file, span.start, memoryview(stored.numpy()), ref)
        tensor = stored.view(known.dtype).as_strided(span.shape, span.strides)
        if ref.rows is not None:
            tensor = torch.cat([tensor[start:end] for start, end in ref.rows])
        tensor = tensor.contiguous()
        if state is not None:
            state.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        return tensor
    ranges = _ranges(ref, span)
    buffer = torch.empty(sum(end - start for start, end in ranges), dtype=torch.uint8)
    target, done = memoryview(buffer.numpy()), 0
    with _open(ref.file) as file:
        for start, end in ranges:
            for position in range(start, end, CHUNK_BYTES):
                part = target[done : done + min(CHUNK_BYTES, end - position)]
                _fill(file, position, part, ref)
                done += len(part)
                if state is not None:
                    state.update(part)
    return buffer.view(known.dtype).reshape(ref.shape)


def _finite(stored: Shaped[Tensor, "..."], ref: TensorRef) -> Float32[Tensor, "..."]:
    tensor = stored.float()
    # A finite sum proves that every entry is finite; only a suspicious one pays for the exact look.
    if not torch.isfinite(tensor.sum()):
        bad = ~torch.isfinite(tensor)
        count = int(bad.sum())
        if count:
            first = [int(index) for index in bad.nonzero()[0]]
            raise NumericalError(
                f"{ref.key} holds NaN or infinity",
                where=str(ref.file),
                values=f"{count:,} of {tensor.numel():,} entries, the first at {first}",
                fix="the file was damaged or badly trained; use another copy",
            )
    return tensor


def digest(ref: TensorRef) -> str:
    """SHA-256 over dtype, shape and bytes, as hex. The same tensor has the same digest in any container."""
    span = _locate(ref)
    if span.strides is not None:
        return digest_tensor(read_tensor(ref))
    state = hashlib.sha256(_digest_head(ref.dtype, ref.shape))
    with _open(ref.file) as file:
        for start, end in _ranges(ref, span):
            for chunk in _chunks(file, start, end, ref):
                state.update(chunk)
    return state.hexdigest()


def digest_tensor(tensor: Shaped[Tensor, "..."]) -> str:
    """`digest` of a tensor in memory."""
    tensor = tensor.detach().cpu().contiguous()
    state = hashlib.sha256(_digest_head(str(name_of(tensor.dtype)), tuple(tensor.shape)))
    state.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return state.hexdigest()


def _digest_head(dtype: str, shape: tuple[int, ...]) -> bytes:
    return f"{dtype} {list(shape)}\n".encode()


def file_identity(path: str | Path) -> str:
    """A line that changes when the file does: resolved path, size, times, inode. Raises FileError.

    The time of the last change of the inode is in it, which a program cannot set back, so a file that was rewritten
    and given its old modification time is seen. A change through a shared mapping moves the times only when the
    system writes it out, and is not seen before.
    """
    try:
        resolved = Path(path).resolve()
        stat = resolved.stat()
    except OSError as error:
        raise _missing(Path(path), error) from None
    return f"{resolved} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def nearest_path(path: Path) -> str:
    """What to try instead of a path that is not there: the neighbour that was most likely meant."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent  # to the first part that is wrong
    try:
        there = {text: item for item in sorted(path.parent.iterdir()) for text in (item.stem, item.name)}
    except OSError:
        there = {}
    close = get_close_matches(path.name, there, n=1)
    return f"did you mean {there[close[0]]}?" if close else "check the path"


def _ref(path: Path, key: str, span: Span, container: str, nest: tuple[str, ...]) -> TensorRef:
    return TensorRef(path, key, span.shape, span.dtype, container, nest)


def _locate(ref: TensorRef) -> Span:
    """Where the tensor lies; of a fused one where all of it lies."""
    if not ref.file.is_file():
        raise _missing(ref.file, None)
    spans = read_groups(ref.file).get(ref.nest, {}) if ref.container == "torch" else read_header(ref.file).spans
    span = spans.get(ref.key)
    found = None if span is None else span.shape
    if ref.rows is not None and found:
        if any(not 0 <= start <= end <= found[0] for start, end in ref.rows):
            raise FileError("the rows asked for do not exist", where=ref.name, values=f"{ref.rows} of {list(found)}")
        found = (sum(end - start for start, end in ref.rows), *found[1:])
    if span is None or span.dtype != ref.dtype or found != ref.shape:
        raise FileError(
            "the file changed since it was first looked at",
            where=ref.name,
            values=f"{ref.dtype} {list(ref.shape)} expected, "
            + ("nothing there now" if span is None else f"{span.dtype} {list(span.shape)} found"),
            fix="run the command again",
        )
    return span


def _ranges(ref: TensorRef, span: Span) -> list[tuple[int, int]]:
    """The bytes of a contiguous tensor in the file, one range after the other."""
    if ref.rows is None:
        return [(span.start, span.end)]
    row = (span.end - span.start) // max(span.shape[0], 1)
    return [(span.start + start * row, span.start + end * row) for start, end in ref.rows]


def _chunks(file: FileIO, start: int, end: int, ref: TensorRef) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(CHUNK_BYTES, end - start)))
    position = start
    while position < end:
        part = buffer[: min(len(buffer), end - position)]
        _fill(file, position, part, ref)
        yield part
        position += len(part)


def _fill(file: FileIO, offset: int, target: memoryview, ref: TensorRef) -> None:
    file.seek(offset)
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            raise FileError("the file is cut short", where=ref.name, values=f"{done:,} of {len(target):,} bytes")
        done += count


def _open(path: Path) -> FileIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise _missing(path, error) from None


def _begin(path: Path) -> bytes:
    if path.is_dir():
        raise FileError("a folder was given where a file is needed", where=str(path))
    with _open(path) as file:
        return file.read(64)


def _refuse_stand_in(path: Path, begin: bytes) -> None:
    """What downloads leave behind under the right name when they go wrong."""
    if begin.startswith(b"version https://git-lfs"):
        raise FileError(
            "this is a Git LFS pointer, a few lines that stand for the file",
            where=str(path),
            fix="git lfs pull, or download the file itself",
        )
    if begin.lstrip()[:1] == b"<":
        raise FileError(
            "this is a web page, not a tensor file",
            where=str(path),
            values=f"it begins with {begin.decode('utf-8', 'replace').split()[0]!r}",
            fix="download the file itself; some need a log-in or a licence to be accepted",
        )


def _missing(path: Path, error: OSError | None) -> FileError:
    reason = "no such file" if error is None or not os.path.exists(path) else (error.strerror or str(error))
    return FileError("the file cannot be read", where=str(path), values=reason, fix=nearest_path(path))
