"""What cache entries are called, where they lie, and how many are kept. Knows file names and sizes, not what is inside.

An entry is `<root>/<kind>/<first two letters of the key>/<key>.safetensors`. Its modification time is
the time of its last use: writing sets it, and so does every read. Only names of exactly this pattern are
ever listed or deleted, so a root that points at somebody's home folder by mistake loses nothing.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.errors import FileError
from loraport.partial import remove_if_abandoned

KINDS = {
    "basis": "decomposed weights",
    "prepared": "what methods made of pairs of weights",
    "result": "finished layers",
    "measurement": "measurements of calibrations",
    "clips": "sampled clips",
}
"""Kinds of entries, and what people call them."""

DEFAULT_MAX_BYTES = 30 * 10**9
RESERVE_BYTES = 10**9  # left free on the disk, so that the cache never takes the room the output needs
_ENTRY = re.compile(r"^[0-9a-f]{64}\.safetensors$")
_LEFTOVER = re.compile(r"^\.[0-9a-f]{64}\.(safetensors|json)\..*\.partial$")


@dataclass(frozen=True)
class EntryInfo:
    """One entry as `cache ls` shows it. `used` is the time of the last use, in seconds since the epoch."""

    kind: str
    key: str
    path: Path
    bytes: int
    used: float


def entry_key(identity: Mapping[str, Any]) -> str:
    """Key of an entry: SHA-256 of the canonical JSON of `identity`, 64 hexadecimal digits.

    Args:
        identity: all that determines the content (digests of the inputs, method, version, parameters), made of
            text, whole numbers, finite floats, booleans, None, lists and dicts with text keys.

    Raises:
        TypeError, ValueError: something in it has no canonical JSON form.
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def cache_root(chosen: str | os.PathLike[str] | None = None) -> Path:
    """The cache folder, which may not exist yet.

    Args:
        chosen: what the user asked for; None for `$LORAPORT_CACHE`, or the operating system's place for caches of
            this user. A `~` in front is a home folder.

    Raises:
        FileError: the folder cannot be used, or there is no home folder that it could be in.
    """
    text = os.fspath(chosen) if chosen is not None else os.environ.get("LORAPORT_CACHE") or ""
    if not text:
        import platformdirs

        try:
            text = platformdirs.user_cache_dir("loraport", appauthor=False)
        except (RuntimeError, KeyError):  # a user that the system has no name for, without HOME
            text = "~/.cache/loraport"
    root = os.path.expanduser(text)
    reason = "there is no such home folder" if root.startswith("~") else _why_unusable(root)
    if reason is not None:
        raise FileError(
            "the cache folder cannot be used",
            where=root,
            values=reason,
            fix="name another one (--cache DIR or LORAPORT_CACHE=DIR), or use none (--cache off)",
        )
    return Path(root)


def _why_unusable(root: str) -> str | None:
    try:
        if not stat.S_ISDIR(os.stat(root).st_mode):
            return "it is not a folder"
        return None if os.access(root, os.R_OK | os.X_OK) else "no permission to read it"
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return getattr(error, "strerror", None) or str(error)
    above = os.path.dirname(root) or os.curdir
    while not os.path.isdir(above) and above != os.path.dirname(above):
        if os.path.lexists(above):
            return f"{above} is not a folder"
        above = os.path.dirname(above) or os.curdir
    return None if os.access(above, os.W_OK | os.X_OK) else f"no permission to write to {above}"


def entry_path(root: Path, kind: str, key: str) -> Path:
    """Path of an entry, whether it exists or not."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of cache entry: {kind!r}, expected one of {tuple(KINDS)}")
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ValueError(f"a cache key is 64 hexadecimal digits, got {key!r}")
    return root / kind / key[:2] / f"{key}.safetensors"


def entries(root: Path) -> list[EntryInfo]:
    """All entries, least recently used first. A folder that does not exist has none."""
    found = []
    for kind in KINDS:
        for file in _files(root / kind):
            if _ENTRY.match(file.name):
                with contextlib.suppress(OSError):  # another process may have removed it meanwhile
                    status = file.stat()
                    key = file.name.removesuffix(".safetensors")
                    found.append(EntryInfo(kind, key, Path(file.path), status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: (entry.used, entry.key))


def free_bytes(root: Path) -> int:
    """What is free on the disk where a cache is or will be. Raises OSError."""
    folder = next((place for place in (root, *root.parents) if place.is_dir()), Path(os.curdir))
    return shutil.disk_usage(folder).free


def room(root: Path, max_bytes: int, reserve_bytes: int) -> int:
    """Bytes of decompositions that a cache can hold: nine tenths of its bound, or what it has and nine tenths of what
    the disk can take. The rest is for finished layers, which a full cache would no longer keep."""
    bound = max_bytes // 10 * 9
    with contextlib.suppress(OSError):
        free = max(free_bytes(root) - reserve_bytes, 0)
        return min(bound, sum(entry.bytes for entry in entries(root)) + free // 10 * 9)
    return bound


def collect(root: Path, *, max_bytes: int | None = None, older_than: float | None = None) -> list[EntryInfo]:
    """Delete entries until the rest fits, least recently used first.

    Args:
        max_bytes: total size that may stay; None sets no bound.
        older_than: entries unused for this many seconds go, whatever the total.

    Returns:
        The entries deleted. Temporary files that killed processes left behind are deleted too.
    """
    now = time.time()
    remaining = entries(root)
    total = sum(entry.bytes for entry in remaining)
    deleted = []
    for entry in remaining:
        too_old = older_than is not None and now - entry.used > older_than
        too_much = max_bytes is not None and total > max_bytes
        if (too_old or too_much) and remove(entry.path):
            total -= entry.bytes
            deleted.append(entry)
    sweep(root)
    return deleted


def sweep(root: Path) -> int:
    """Delete the temporary files that killed processes left behind; returns how many there were."""
    left = [item for folder in (*KINDS, "digests") for item in _items(root / folder) if _LEFTOVER.match(item.name)]
    return sum(remove_if_abandoned(Path(item.path)) for item in left)


def clear(root: Path) -> list[EntryInfo]:
    """Delete every entry and every remembered digest; returns the entries deleted."""
    deleted = [entry for entry in entries(root) if remove(entry.path)]
    for file in list(_files(root / "digests")):
        if re.fullmatch(r"[0-9a-f]{64}\.json", file.name):
            remove(Path(file.path))
    sweep(root)
    for kind in (*KINDS, "digests"):
        _remove_empty_folders(root / kind)
    return deleted


def remove(path: Path) -> bool:
    """Delete a file; False when it was gone already or may not be deleted (in use on Windows, read-only cache)."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


def touch(path: Path) -> None:
    """Mark an entry as used now. A read-only cache can still be read."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _files(folder: Path) -> Iterator[os.DirEntry]:
    """Files in the two-letter folders of `folder`."""
    return (item for item in _items(folder) if item.is_file(follow_symlinks=False))


def _items(folder: Path) -> Iterator[os.DirEntry]:
    """Whatever lies in the two-letter folders of `folder`."""
    try:
        with os.scandir(folder) as subfolders:
            names = [item.path for item in subfolders if len(item.name) == 2 and item.is_dir(follow_symlinks=False)]
        for name in names:
            with os.scandir(name) as items:
                yield from items
    except OSError:
        return


def _remove_empty_folders(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for subfolder in [item for item in folder.iterdir() if item.is_dir()]:
            with contextlib.suppress(OSError):  # not empty, and therefore none of our business
                subfolder.rmdir()
        folder.rmdir()
