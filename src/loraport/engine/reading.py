"""The tensors of a run, read once: hashed while they are read, and checked against the file that the plan looked at.

What is computed with must be what was hashed, or a result would be kept under the name of another. So a digest comes
from the reading itself, or from the memory of an earlier run, and then the reading must agree with it, or with the
checksum that was remembered beside it. A file counts as unchanged while its path, size, inode and both times are those
taken when it was opened for the plan.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from loraport.adapters.update import LayerUpdate
from loraport.containers.references import TensorRef, file_identity
from loraport.containers.sent import Place
from loraport.containers.stored_tensors import in_memory
from loraport.containers.tensors import (
    AsRead,
    Sums,
    can_stream,
    read_with_sums,
    stored_with_sums,
    subtract,
    sums_of,
)
from loraport.core.lowrank import LowRank
from loraport.core.reused import ReusedMemory
from loraport.engine import accelerators
from loraport.engine.known_digests import KnownDigests, beside
from loraport.errors import FileError
from loraport.store.digests import DigestMemo

Found = TypeVar("Found")

_CPU = torch.device("cpu")
_CLOCK_NS = 50_000_000  # a file changed twice within this time may show the same time of change


class InputReader(KnownDigests):
    """Reads tensors for all jobs of a run. Safe with threads; a copy sent to another process holds no tensors, and of
    digests knows what it is told.

    Args:
        memo: digests remembered from earlier runs.
        identities: file -> its `file_identity` when the plan was made. Files not named are taken as they are now.
        pinned: read into memory that a CUDA device can fetch by itself.
    """

    def __init__(self, memo: DigestMemo, identities: Mapping[Path, str] | None = None, *, pinned: bool = False):
        super().__init__(memo, identities)
        self._pinned = pinned
        self._held: dict[tuple[str, str], AsRead] = {}
        self._hashed: set[tuple[str, str]] = set()  # what this reader hashed itself
        self._memory = ReusedMemory()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, (self.identities, self._pinned)

    def digest(self, ref: TensorRef, *, hold: bool = False) -> str:
        """The digest of a tensor, remembered or computed.

        Args:
            hold: if it must be read for that, keep what was read until `read` or `drop`.

        Raises:
            FileError: the file cannot be read, or changed since the plan was made.
        """
        page = self.page(ref)
        known = self.memo.get(*page)
        if known is not None:
            return known
        if not hold:
            found = self._noted(ref, page, sums_of(ref))
            self._remember(ref, page, found)
            return found
        read, sums = read_with_sums(ref, self._room)
        found = self._noted(ref, page, sums)
        self._remember(ref, page, found)
        self._hold(page, read)
        return found

    def bring(self, ref: TensorRef) -> None:
        """Read a tensor and keep it until `read` or `drop`; one that is kept already is not read. Raises as `read`."""
        page = self.page(ref)
        with self._lock:
            there = page in self._held
        if not there:
            self._hold(page, self._sure(ref, page))

    def read(self, ref: TensorRef, *, hold: bool = False, device: torch.device = _CPU) -> Float32[Tensor, "..."]:
        """A tensor in float32, sure to be the one whose digest was given.

        Args:
            hold: keep it for the next `read` as well; then what is returned must not be written to.
            device: where it goes.

        Raises:
            FileError: the file cannot be read, or changed since the plan was made or since it was last hashed.
            NumericalError: it holds NaN or infinity.
        """
        return self._taken(ref, hold=hold).float32(device)

    def difference(self, one: TensorRef, other: TensorRef) -> Float32[Tensor, "..."]:
        """`read(one) - read(other)` on the CPU, to the same bits. Raises as `read`."""
        found = self._streamed(one, other)
        return self.read(one).sub_(self.read(other)) if found is None else found

    def strips(self, ref: TensorRef, *, device: torch.device = _CPU) -> Iterator[tuple[slice, Float32[Tensor, "..."]]]:
        """`read` in strips of rows, of which only one stands there at a time: which rows, and their numbers.

        Args:
            ref: which one; it is not kept afterwards.
            device: where they go.

        Raises:
            FileError, NumericalError: as `read`; the latter after the last strip.
        """
        return self._taken(ref).strips(device)

    def load(self, update: LayerUpdate) -> LowRank:
        """An update of a LoRA, sure to be made of the tensors whose digests were given. Raises as `read`.

        The source's weight, where the update is a function of it, is held afterwards.
        """
        loaded = update.load(lambda ref: self.read(ref, hold=True))
        for ref in update.refs.values():
            page = self.page(ref)
            if page in self._hashed:
                self._check(ref.file)
            else:  # the digest is remembered, so that nothing of this run has seen the bytes yet
                self._surely(ref, page, partial(_added_up, ref))
        return loaded

    def send(self, ref: TensorRef) -> dict[Place, UInt8[Tensor, " n"]]:
        """The stored bytes of a tensor for another machine, by where they lie; sure to be the one whose digest is
        remembered, as it is afterwards. Raises FileError."""
        return self._surely(ref, self.page(ref), lambda digest: stored_with_sums(ref, digest=digest))

    def drop(self, refs: Iterable[TensorRef]) -> None:
        """Let go of what is held of these tensors."""
        with self._lock:
            for ref in refs:
                self._held.pop(self.page(ref), None)

    def check_unchanged(self) -> None:
        """Raise FileError if any input file is not the one that the plan was made from."""
        for file in self.identities:
            self._check(file)

    def _taken(self, ref: TensorRef, *, hold: bool = False) -> AsRead:
        page = self.page(ref)
        with self._lock:
            read = self._held.get(page) if hold else self._held.pop(page, None)
        if read is None:
            read = self._sure(ref, page)
            if hold:
                self._hold(page, read)
        return read

    def _sure(self, ref: TensorRef, page: tuple[str, str]) -> AsRead:
        """Read now, and held against what is known."""
        return self._surely(ref, page, lambda digest: read_with_sums(ref, self._room, digest=digest))

    def _surely(self, ref: TensorRef, page: tuple[str, str], read: Callable[[bool], tuple[Found, Sums]]) -> Found:
        checksum = self.checksum(page)
        if checksum is not None:
            found, sums = read(False)
            if sums.checksum == checksum:
                self._check(ref.file)
                with self._lock:
                    self._hashed.add(page)
                return found
        found, sums = read(True)
        self._agree(ref, page, self._noted(ref, page, sums))
        return found

    def _noted(self, ref: TensorRef, page: tuple[str, str], sums: Sums) -> str:
        """The digest; the checksum is remembered beside it."""
        assert sums.digest is not None
        self.memo.put(*beside(page, sums.digest), sums.checksum, lasting=_settled(ref.file))
        return sums.digest

    @property
    def _room(self) -> Callable[[int], Tensor]:
        return accelerators.pinned if self._pinned else in_memory

    def _streamed(self, one: TensorRef, other: TensorRef) -> Tensor | None:
        """A difference formed while both are read; None where that cannot be, or something is wrong with them."""
        pages = [self.page(ref) for ref in (one, other)]
        checksums = [self.checksum(page) for page in pages]
        with self._lock:
            held = any(page in self._held for page in pages)
        if held or None in checksums or one.shape != other.shape or not (can_stream(one) and can_stream(other)):
            return None
        found = self._memory.take(4 * math.prod(one.shape)).view(torch.float32).reshape(one.shape)
        *sums, total = subtract(one, other, found)
        if sums != checksums or not math.isfinite(total):
            return None
        for ref in (one, other):
            self._check(ref.file)
        with self._lock:
            self._hashed.update(pages)
        return found

    def _hold(self, page: tuple[str, str], read: AsRead) -> None:
        with self._lock:
            self._held[page] = read

    def _agree(self, ref: TensorRef, page: tuple[str, str], found: str) -> None:
        known = self.memo.get(*page)
        if known is not None and known != found:
            self.memo.forget(page[0])  # now: whoever stops here may not come to write what is remembered
        self._remember(ref, page, found)
        if known is not None and known != found:
            raise FileError(
                "the content of a tensor changed while it was read, or since it was last hashed",
                where=ref.name,
                values=f"digest {found[:12]}, earlier {known[:12]}, although size and times are the same",
                fix="run the command again when nothing writes to the file; its remembered digests were discarded",
            )

    def _remember(self, ref: TensorRef, page: tuple[str, str], found: str) -> None:
        self._check(ref.file)
        with self._lock:
            self._hashed.add(page)
        self.memo.put(*page, found, lasting=_settled(ref.file))

    def _check(self, file: Path) -> None:
        planned = self.identities.get(file)
        if planned is None:
            return
        now = file_identity(file)
        if now != planned:
            raise FileError(
                "a file changed while it was read",
                where=str(file),
                values=f"now {now}, when first opened {planned}",
                fix="run the command again when nothing writes to the file",
            )


def _added_up(ref: TensorRef, digest: bool) -> tuple[None, Sums]:
    return None, sums_of(ref, digest=digest)


def _copy(identities: Mapping[Path, str], pinned: bool) -> InputReader:
    return InputReader(DigestMemo(None), identities, pinned=pinned)


def _settled(file: Path) -> bool:
    """Whether a further change of the file would show in its times, which move in steps of some milliseconds."""
    try:
        stat = os.stat(file)
    except OSError:
        return False
    return time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _CLOCK_NS
