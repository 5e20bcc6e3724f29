"""Remembered digests: a tensor of a file that did not change since is not hashed again.

One small JSON file for each input file, `<root>/digests/<two letters>/<hash of the identity>.json`. The
identity names path, size, times and inode, so an edited file gets a fresh page. Several processes may write
at once: each write merges what is on the disk, and an update lost in a race only means one more hashing.
"""

import hashlib
import json
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

from loraport.errors import FileError
from loraport.files import write_bytes
from loraport.store import index

_HEX = re.compile(r"^[0-9a-f]{16,128}$")


class DigestMemo:
    """Digests by (identity of the file, tensor), kept across runs.

    Args:
        root: the cache folder (that of the Store); None remembers in memory only, for `--cache off`.
        batch: number of new digests after which they are written.
        trust: believe what earlier runs wrote; else each digest is computed anew, and replaces theirs.

    Call `flush` at the end; what is not flushed is hashed again next time.
    """

    def __init__(self, root: Path | str | None, *, batch: int = 256, trust: bool = True):
        self.root = None if root is None else Path(root)
        self._batch = batch
        self._trust = trust
        self._pages: dict[str, dict[str, str]] = {}
        self._earlier: dict[str, frozenset[str]] = {}
        self._fresh: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(DigestMemo, batch=self._batch, trust=self._trust), (self.root,)

    def get(self, identity: str, tensor: str) -> str | None:
        """The remembered digest, or None.

        Args:
            identity: names the file in its present state (path, size, modification time, inode).
            tensor: names the tensor in the file, including the slice of rows if it is one.
        """
        with self._lock:
            return self._page(identity).get(tensor)

    def is_from_earlier(self, identity: str, tensor: str) -> bool:
        """Whether an earlier run remembered a digest, which this one believes.

        Args:
            identity, tensor: as in `get`.
        """
        with self._lock:
            self._page(identity)
            return tensor in self._earlier[identity]

    def put(self, identity: str, tensor: str, digest: str, *, lasting: bool = True) -> None:
        """Remember a digest.

        Args:
            identity, tensor: as in `get`.
            digest: hexadecimal.
            lasting: also for later runs.
        """
        with self._lock:
            self._page(identity)[tensor] = digest
            if not lasting:
                return
            self._fresh.setdefault(identity, {})[tensor] = digest
            due = sum(len(page) for page in self._fresh.values()) >= self._batch
        if due:
            self.flush()

    def take_new(self) -> dict[tuple[str, str], str]:
        """What is new and not written yet, by identity and tensor. To keep it is left to the caller."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        return {(identity, tensor): text for identity, page in fresh.items() for tensor, text in page.items()}

    def forget(self, identity: str) -> None:
        """Forget all digests of a file in a state, here and for later runs: one of them turned out not to be true.

        Args:
            identity: as in `get`.
        """
        with self._lock:
            for pages in (self._pages, self._fresh, self._earlier):
                pages.pop(identity, None)
            if self.root is not None:
                index.remove(self._path(identity))

    def flush(self) -> None:
        """Write what is new. A disk that cannot be written is no error: the digests are computed again next time."""
        with self._lock:
            if self.root is None:
                return
            fresh, self._fresh = self._fresh, {}
            for identity, page in fresh.items():
                merged = self._read(identity) | page
                text = json.dumps({"identity": identity, "digests": merged}, sort_keys=True)  # plain ASCII: a path may
                try:  # have a name in it that is no valid Unicode
                    write_bytes(self._path(identity), text.encode())
                except (FileError, OSError):
                    self.root = None
                    return

    def _page(self, identity: str) -> dict[str, str]:
        if identity not in self._pages:
            self._pages[identity] = self._read(identity) if self._trust else {}
            self._earlier[identity] = frozenset(self._pages[identity])
        return self._pages[identity]

    def _read(self, identity: str) -> dict[str, str]:
        """The page on the disk; a damaged or foreign one counts as empty and is replaced at the next write."""
        if self.root is None:
            return {}
        path = self._path(identity)
        try:
            page = json.loads(path.read_bytes())
            if page["identity"] != identity or not all(_HEX.match(text) for text in page["digests"].values()):
                return {}
            found = dict(page["digests"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
        index.touch(path)
        return found

    def _path(self, identity: str) -> Path:
        assert self.root is not None
        name = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
        return self.root / "digests" / name[:2] / f"{name}.json"
