"""Cache and resume in one: results of expensive steps, found again by what they were computed from.

A key is the SHA-256 of everything that determines the bytes of the entry, so an entry is right or absent,
never stale. The cache is a convenience: a damaged entry is reported, dropped and computed again; a full or
read-only disk is reported once and the run goes on without caching.
"""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from loraport.core.reused import ReusedMemory
from loraport.errors import FileError
from loraport.store import index
from loraport.store.entry import DamagedEntry, Entry, NewerEntry, OlderEntry, peek_entry, read_entry, write_entry
from loraport.store.index import DEFAULT_MAX_BYTES, RESERVE_BYTES, EntryInfo
from loraport.store.writing import WRITERS, Behind


@dataclass(frozen=True)
class StoreProblem:
    """Something about the cache that the user may want to know, and that did not stop the run.

    `what` is "damaged" (entry dropped), "newer" or "older" (entry of another program version), "unreadable" (the system
    does not let us read; said once), or "unwritable" (nothing more is cached in this run; said once).
    """

    what: str
    entry: str
    detail: str

    @property
    def message(self) -> str:
        """One line for people."""
        if self.what == "damaged":
            return f"cache entry {self.entry} was not used and is computed again: {self.detail}"
        if self.what in ("newer", "older", "unreadable"):
            return f"cache entry {self.entry} was not used: {self.detail}"
        return f"the cache takes no more entries in this run ({self.entry}): {self.detail}"


class Store:
    """Content-addressed entries in a folder, bounded in size, safe with several processes at once.

    Args:
        root: the folder, such as that of `index.cache_root`.
        max_bytes: total size kept (least recently used go first); None for 30 GB.
        reserve_bytes: free space on the disk that caching leaves alone.
        behind: bytes of entries that may wait for a thread to write them, while whoever put them goes on; call
            `finish` at the end. None writes at once, as a store that was sent to another process does.
        memory: gives so many bytes to read an entry into; None for ordinary memory, which is used again.
    """

    def __init__(
        self,
        root: Path | str,
        max_bytes: int | None = None,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        behind: int | None = None,
        memory: Callable[[int], Tensor] | None = None,
    ):
        self.root = Path(root)
        self.max_bytes = DEFAULT_MAX_BYTES if max_bytes is None else max_bytes
        self.reserve_bytes = reserve_bytes
        self._problems: list[StoreProblem] = []
        self._behind = None if behind is None else Behind(behind, WRITERS)
        self._memory = ReusedMemory().take if memory is None else memory
        self._closed = False  # True once writing failed
        self._unreadable = False  # True once reading failed for reasons that lie outside the entry
        self._total: int | None = None  # bytes in the cache as far as this process knows; None before the first put
        self._unseen = 0  # bytes put here since the index was last read
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), reserve_bytes=self.reserve_bytes), (self.root, self.max_bytes)

    def path(self, kind: str, key: str) -> Path:
        """Where an entry lies, or would lie."""
        return index.entry_path(self.root, kind, key)

    def takes(self, kind: str) -> bool:
        """Whether entries of a kind are kept; where they are not, they need not be made ready for it."""
        return True

    def get(self, kind: str, key: str, expect: Mapping[str, tuple[int, ...]] | None = None) -> Entry | None:
        """The entry as a dict of CPU tensors with its texts in `.meta`; None if absent or not to be trusted.

        Args:
            expect: names and shapes that it must hold, exactly; anything else counts as damaged.
        """
        path = self.path(kind, key)
        if self._behind is not None:
            self._behind.wait(path)
        try:
            entry = read_entry(path, kind, key, expect=expect, memory=self._memory)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except NewerEntry as error:
            self._report("newer", path, str(error))
            return None
        except OlderEntry:
            index.remove(path)
            return None
        except DamagedEntry as error:
            index.remove(path)
            self._report("damaged", path, str(error))
            return None
        except OSError as error:  # no rights, or a disk that fails: deleting would not help
            if not self._unreadable:
                self._unreadable = True
                self._report("unreadable", path, error.strerror or str(error))
            return None
        index.touch(path)
        return entry

    def peek(self, kind: str, key: str) -> dict[str, str] | None:
        """The texts of an entry, unchecked; None where there are none. For a first look, and no use of the entry."""
        try:
            return peek_entry(self.path(kind, key), kind, key)
        except (DamagedEntry, OSError):  # `get` says what is wrong with it
            return None

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> bool:
        """Keep an entry, whole or not at all. Failing to write is not an error.

        Returns whether it was kept; where it is written behind, whether that will be tried. Its tensors must not be
        changed until then.
        """
        if self._closed:
            return False
        path = self.path(kind, key)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        write = partial(self._write, path, size, kind, key, tensors, meta or {})
        if self._behind is None:
            return write()
        self._behind.put(path, size, write)
        return True

    def finish(self) -> None:
        """Return when everything that was put is written."""
        if self._behind is not None:
            self._behind.finish()

    def entries(self) -> list[EntryInfo]:
        """All entries, least recently used first."""
        return index.entries(self.root)

    def verify(self, remove: bool = False) -> list[StoreProblem]:
        """Read every entry and check it as `get` does; returns what is wrong. Nothing is deleted unless asked."""
        problems = []
        for info in self.entries():
            try:
                read_entry(info.path, info.kind, info.key)
            except FileNotFoundError:
                continue
            except NewerEntry as error:
                problems.append(StoreProblem("newer", str(info.path), str(error)))
            except OlderEntry as error:
                problems.append(StoreProblem("older", str(info.path), str(error)))
                if remove:
                    index.remove(info.path)
            except OSError as error:
                problems.append(StoreProblem("unreadable", str(info.path), error.strerror or str(error)))
            except DamagedEntry as error:
                problems.append(StoreProblem("damaged", str(info.path), str(error)))
                if remove:
                    index.remove(info.path)
        return problems

    def sweep(self) -> None:
        """Delete what killed processes left behind."""
        index.sweep(self.root)

    def take_problems(self) -> list[StoreProblem]:
        """The problems gathered since the last call, which are then forgotten here."""
        with self._lock:
            taken, self._problems = self._problems, []
        return taken

    def _write(
        self, path: Path, size: int, kind: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str]
    ) -> bool:
        if self._closed:  # meanwhile
            return False
        try:
            self._check_room(size)
            write_entry(path, kind, key, tensors, meta)
        except (FileError, OSError) as error:
            if path.is_file():  # another process put the same entry first and is reading it (Windows)
                return True
            self._close(path, getattr(error, "values", None) or str(error))
            return False
        self._account(size)
        return True

    def _check_room(self, size: int) -> None:
        if size > self.max_bytes:
            raise FileError("entry too large", values=f"{size:,} bytes, the cache is bounded to {self.max_bytes:,}")
        free = index.free_bytes(self.root)
        if free < size + self.reserve_bytes:
            raise FileError(
                "not enough room for the cache",
                values=f"{free:,} bytes free on the disk, {size:,} to write and {self.reserve_bytes:,} kept free",
            )

    def _account(self, size: int) -> None:
        """Keep the bound. The index is read rarely, since other processes put entries there as well."""
        with self._lock:
            self._unseen += size
            known = None if self._total is None else self._total + self._unseen
            if known is None or known > self.max_bytes or self._unseen > self.max_bytes // 20:
                total = sum(entry.bytes for entry in index.entries(self.root))
                if total > self.max_bytes:  # a little below the bound, so that the next put does not count again
                    total -= sum(e.bytes for e in index.collect(self.root, max_bytes=self.max_bytes // 10 * 9))
                self._total, self._unseen = total, 0

    def _close(self, path: Path, detail: str) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._report("unwritable", path, detail)

    def _report(self, what: str, path: Path, detail: str) -> None:
        with self._lock:
            self._problems.append(StoreProblem(what, str(path), detail))


class NullStore(Store):
    """A store that keeps nothing and finds nothing, for `--cache off`. It never touches the disk."""

    def __init__(self) -> None:
        super().__init__(os.devnull)

    def __reduce__(self) -> tuple[Any, ...]:
        return NullStore, ()

    def takes(self, kind: str) -> bool:
        return False

    def get(self, kind: str, key: str, expect: Mapping[str, tuple[int, ...]] | None = None) -> Entry | None:
        return None

    def peek(self, kind: str, key: str) -> dict[str, str] | None:
        return None

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> bool:
        return False

    def sweep(self) -> None:
        return None
