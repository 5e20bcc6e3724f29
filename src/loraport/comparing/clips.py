"""Clips on the disk, each under the name of all that it was made from: what is there need not be made again."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from loraport.files import file_digest, write_bytes

LARGE = 16 * 2**20  # bytes; larger files are known by size and time, not by their contents


class ClipFolder:
    """A folder of clips, as `.npz` files with the frames and what they were made from.

    Args:
        folder: made when the first clip is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, made_of: Mapping[str, Any]) -> Path:
        """Where the clip that is made of this lies, or would."""
        text = json.dumps(made_of, sort_keys=True, ensure_ascii=False)
        return self.folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.npz"

    def read(self, made_of: Mapping[str, Any]) -> UInt8[np.ndarray, "f h w 3"] | None:
        """The frames, or None where there are none, or the file is damaged."""
        try:
            with np.load(self.path(made_of), allow_pickle=False) as held:
                frames = held["frames"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        whole = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3 and frames.size > 0
        return frames if whole else None

    def write(self, made_of: Mapping[str, Any], frames: UInt8[np.ndarray, "f h w 3"]) -> None:
        """Write the frames. Raises FileError."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, frames=frames, made_of=np.array(json.dumps(made_of, sort_keys=True)))
        write_bytes(self.path(made_of), buffer.getvalue())


def short(digest: str) -> str:
    """A digest in the keys of clips."""
    return digest[:32]


def model_digest(path: Path) -> str:
    """Of a model's files: small ones by their contents, large ones by name, size and time of the last change.

    A copy of a model with new times counts as another model, and its clips are made again.

    Args:
        path: a folder, or one file.
    """
    made = hashlib.sha256()
    files = [path] if path.is_file() else sorted(_files_in(path))
    for file in files:
        if any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        stat = file.stat()
        known = short(file_digest(file)) if stat.st_size <= LARGE else f"{stat.st_size} {stat.st_mtime_ns}"
        made.update(f"{file.relative_to(path).as_posix()} {known}\n".encode("utf-8", "surrogatepass"))
    return short(made.hexdigest())


def _files_in(folder: Path) -> Iterator[Path]:
    """All files, also of the parts of a pipeline that are links to those of another one."""
    for item in folder.iterdir():
        yield from (each for each in (item.rglob("*") if item.is_dir() else [item]) if each.is_file())
