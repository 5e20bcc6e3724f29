"""Finished parts of a calibration on disk, so that the same command goes on where it was interrupted."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loraport.adapters.header import canonical_json
from loraport.containers.safetensors import write_safetensors
from loraport.containers.tensors import file_identity

if TYPE_CHECKING:
    from loraport.sampling.denoiser import Runnable


class Notes:
    """Tensors by name in a folder, under a key made of everything that they depend on; in no folder, nothing is kept.

    Args:
        folder: where; None keeps nothing.
        facts: settings and inputs that decide the numbers.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any]):
        self._folder = folder
        self._key = hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:16]
        self.found: list[str] = []

    def find(self, name: str) -> Tensor | None:
        """The tensor of this name from an earlier run; None if there is none, or its file is damaged."""
        if self._folder is None:
            return None
        try:
            kept = load_file(self._file(name))["value"]
        except (SafetensorError, KeyError, OSError):
            return None
        if name not in self.found:
            self.found.append(name)
        return kept

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of this name from an earlier run, or made now. A damaged file is made again."""
        kept = self.find(name)
        if kept is not None:
            return kept
        value = make()
        if self._folder is not None:
            write_safetensors(self._file(name), {"value": value}, {})
        return value

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._key}-{name}.safetensors"


def weights_of(model: "Runnable") -> str:
    """What changes when the weights of a model change: its own word, or name, size and time of its files."""
    if model.identity is not None:
        return model.identity()
    places = [place for place in (model.checkpoint, model.distill) if place is not None]
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    lines = [file_identity(file) for file in files if file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".json")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
