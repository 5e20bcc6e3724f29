"""Tensors that another machine sent, in the place of files that this one does not see.

Within `in_place` whoever reads one of them reads what was sent, and whoever asks for the state of its file is told
that which it had where it lies. The disk of this machine is not looked at, whatever it has under the same name.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

    from loraport.containers.stored import TensorRef

Place = tuple[Path, tuple[str, ...], str, tuple[tuple[int, int], ...] | None]
"""Where a stored tensor lies: file, names that lead to it, key, rows."""


@dataclass(frozen=True)
class Sent:
    """What was sent.

    Attributes:
        states: file -> its `file_identity` on the machine that read it.
        stored: the bytes of each tensor as `read_stored` gives them; companions are tensors of their own.
    """

    states: "Mapping[Path, str]"
    stored: "Mapping[Place, NDArray[uint8]]"


_sent: "ContextVar[Sent | None]" = ContextVar("sent", default=None)


@contextlib.contextmanager
def in_place(sent: Sent) -> Iterator[None]:
    """Within the block what was sent stands for its files, in this thread."""
    before = _sent.set(sent)
    try:
        yield
    finally:
        _sent.reset(before)


def place_of(ref: "TensorRef") -> Place:
    """Where a tensor lies, whatever is made of it."""
    return ref.file, ref.nest, ref.key, ref.rows


def bytes_sent(ref: "TensorRef") -> "NDArray[uint8] | None":
    """The bytes of a tensor, if its file is not to be looked at.

    Raises:
        LookupError: they were not sent, which is a fault of whoever said what the work reads.
    """
    sent = _sent.get()
    if sent is None or ref.file not in sent.states:
        return None
    found = sent.stored.get(place_of(ref))
    if found is None:
        raise LookupError(f"{ref.name} is read, and was not sent")
    return found


def state_sent(file: Path) -> str | None:
    """The `file_identity` of a file that is not to be looked at."""
    sent = _sent.get()
    return None if sent is None else sent.states.get(file)
