"""Finished layers on the disk, until their LoRA has all of them: memory does not grow with the number of LoRAs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from loraport.containers.references import open_tensors
from loraport.containers.safetensors import write_safetensors
from loraport.containers.tensors import read_tensor
from loraport.core.lowrank import LowRank
from loraport.engine.worker import LayerResult
from loraport.errors import FileError
from loraport.partial import partial_file


@dataclass(frozen=True)
class Waiting:
    """A folder with a file for every layer that waits, and the rest of each result in memory, which is small."""

    folder: Path
    results: dict[tuple[int, str], tuple[Path, LayerResult]] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=count)

    def put(self, number: int, result: LayerResult) -> None:
        """Lay a layer of the LoRA of that number down. Raises FileError."""
        path = self.folder / f"{next(self.names)}.safetensors"
        try:
            write_safetensors(path, {"B": result.update.B, "A": result.update.A}, {}, durable=False)
        except FileError as error:  # the user knows the folder, not what waits in it
            where = str(self.folder.parent)
            raise FileError(error.what, where=where, values=error.values, fix=error.fix) from error
        self.results[number, result.report.name] = path, replace(result, update=LowRank.zeros(*result.report.shape))

    def take(self, number: int, names: list[str]) -> list[LayerResult]:
        """The layers of a LoRA as they were put, in this order; they wait no longer. Raises FileError."""
        found = []
        for name in names:
            path, result = self.results.pop((number, name))
            refs = open_tensors(path).groups[()]
            found.append(replace(result, update=LowRank(read_tensor(refs["B"]), read_tensor(refs["A"]))))
            path.unlink()
        return found


@contextlib.contextmanager
def waiting(folder: Path) -> Iterator[Waiting]:
    """A place for layers in `folder`, which is made if it is not there. Nothing of it is left when the block ends.

    Raises:
        FileError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_if_empty, folder)
            file = stack.enter_context(partial_file(folder / "layers"))
        except OSError as error:
            raise FileError("the folder cannot be written", where=str(folder), values=error.strerror) from error
        yield Waiting(file.parent)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
