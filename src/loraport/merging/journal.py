"""What a merge that was stopped has written: a file beside each copy in work, with a line a tensor.

Nothing is believed that cannot be seen: the copy is found by the name of the job, which says everything that decides
its bytes, and a tensor counts as written if its bytes in the copy have the checksum of its line. So neither needs to
reach the disk in any order, and what a power cut tore is simply written again.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch

from loraport.adapters.header import canonical_json
from loraport.containers.tensors import TensorRef
from loraport.merging.plan import MergePlan
from loraport.version import __version__

_BYTES = 1  # to be raised when a merge writes other bytes, or other lines, within a version of the program


def job_of(plan: MergePlan, told: Sequence[Mapping[str, object]]) -> str:
    """A name for everything that decides what a merge writes: other files, settings or arithmetic, another name.

    Args:
        plan: what is to be done.
        told: what the header says of the LoRAs, with digests of their tensors.
    """
    job = {
        "loraport": [__version__, _BYTES],
        "torch": [torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
        "inputs": sorted(plan.identities.values()),
        "tensors": repr(plan.tensors),
        "told": told,
    }
    return sha256(canonical_json(job).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Loss:
    """What rounding did to one tensor.

    Args:
        name: of the tensor.
        change: Frobenius norm of the exact update.
        error: the same of what was stored less what should have been.
    """

    name: str
    change: float
    error: float

    @property
    def share(self) -> float:
        """The error over the update."""
        return self.error / self.change if self.change else 0.0


class Journal:
    """The tensors that have been written to a copy in work.

    Args:
        copy: its name; it may be there from an earlier run, with the journal beside it.

    Raises:
        OSError: the journal cannot be written.
    """

    def __init__(self, copy: Path):
        path = copy.with_name("journal")
        self._known = dict(filter(None, map(_parsed, path.read_bytes().splitlines()))) if path.exists() else {}
        self._file = path.open("ab")
        self._file.write(b"\n")  # the last line may be torn

    def __len__(self) -> int:
        return len(self._known)

    def find(self, ref: TensorRef) -> tuple[str, Loss] | None:
        """The checksum of a stored tensor that was written, and what rounding did; None if it was not."""
        return self._known.get(_name(ref))

    def add(self, ref: TensorRef, checksum: str, loss: Loss) -> None:
        """Say that a stored tensor has been written. Raises OSError."""
        text = json.dumps([_name(ref), checksum, asdict(loss)]).encode()
        self._file.write(b"%08x %b\n" % (zlib.crc32(text), text))
        self._file.flush()
        self._known[_name(ref)] = checksum, loss

    def close(self) -> None:
        """Close the file. Raises OSError."""
        self._file.close()


def _name(ref: TensorRef) -> str:
    return json.dumps([*ref.nest, ref.key])


def _parsed(line: bytes) -> tuple[str, tuple[str, Loss]] | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    name, found, loss = json.loads(text)
    return name, (found, Loss(**loss))
