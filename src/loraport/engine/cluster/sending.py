"""What a job reads, put together where its files are, for a machine that does not see them; and the work there.

The machine works as it would on the files: what it was sent is held, where it is computed with, against what it added
up to while the files were read. It has no part in the cache. Finished layers go home and
are kept there; those of earlier runs are sent to it instead of tensors. Decompositions are not kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from loraport.containers.references import TensorRef
from loraport.containers.sent import Place, Sent, in_place
from loraport.engine.executor import Result, Slot, Work, in_slot
from loraport.engine.job import Job
from loraport.engine.reading import InputReader
from loraport.store.entry import Entry
from loraport.store.store import NullStore, Store

_RESULT = "result"

J = TypeVar("J", bound=Job, contravariant=True)


@runtime_checkable
class Sendable(Protocol[J]):
    """Work for an executor, such as an `engine.worker.Worker`, that can be done where its files are not seen. Where
    it keeps anything, it has its `store`."""

    @property
    def reader(self) -> InputReader:
        """Of the input files."""
        ...

    def result_keys(self, job: J) -> list[str | None]:
        """Under which keys the results of a job are kept; None for those of which a digest is not remembered."""
        ...

    def elsewhere(self, store: Store, reader: InputReader) -> Work[J, Any]:
        """The same work with another store and reader."""
        ...

    def __call__(self, job: J, slot: Slot) -> Any:
        """Do one job."""
        ...


@dataclass(frozen=True)
class Finished:
    """A finished layer for the store.

    Attributes:
        key: under which it is kept.
        tensors: its content.
        meta: texts that go with it.
    """

    key: str
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, str]


@dataclass(frozen=True)
class Parcel:
    """What one job reads.

    Attributes:
        sent: the stored tensors; none where all of its results are there.
        digests: of the tensors, and their checksums, by their pages in the memory of digests.
        kept: results of earlier runs, by key.
    """

    sent: Sent
    digests: Mapping[tuple[str, str], str]
    kept: Mapping[str, Entry]


def bytes_read(job: Job) -> int:
    """How much a parcel of a job holds at most."""
    return sum(ref.nbytes for ref in _unique(job))


def pack(work: Sendable[J], job: J) -> Parcel:
    """Read what a job reads, once, hashed meanwhile.

    Raises:
        FileError: a file cannot be read, or changed since the plan was made.
    """
    store: Store | None = getattr(work, "store", None)
    keys = work.result_keys(job) if store is not None else []
    found = {key: store.get(_RESULT, key) for key in keys if key is not None} if store is not None else {}
    kept = {key: entry for key, entry in found.items() if entry is not None}
    finished = bool(keys) and set(keys) == set(kept)
    reader = work.reader
    stored: dict[Place, Any] = {}
    digests: dict[tuple[str, str], str] = {}
    for ref in _unique(job):
        if finished:
            digests |= reader.told(ref)
            continue
        parts, told = reader.send(ref)
        digests |= told
        stored |= {place: part.numpy() for place, part in parts.items()}
    return Parcel(Sent(reader.identities, stored), digests, kept)


def unpack(work: Work[J, Result], job: J, slot: Slot, parcel: Parcel) -> tuple[Result, list[Finished]]:
    """Do a job with what was sent.

    Args:
        work: what `away` gave, as it came to this machine.
        job: the job.
        slot: where it is done.
        parcel: what it reads.

    Returns:
        What the work returns, and what is to be kept at home.
    """
    reader: InputReader = work.reader  # type: ignore[attr-defined]
    store: _Away | None = getattr(work, "store", None)
    if store is not None:
        store.kept = parcel.kept
    for page, digest in parcel.digests.items():
        reader.memo.put(*page, digest, lasting=False)
    with in_place(parcel.sent):
        result = in_slot(work, job, slot)
    return result, store.finished if store is not None else []


def away(work: Sendable[J]) -> Work[J, Any]:
    """The work as it is sent to machines that do not see the files."""
    return work.elsewhere(
        _Away(gathers=not isinstance(getattr(work, "store", None), NullStore)), work.reader.elsewhere()
    )


def take_home(work: Sendable[J], finished: list[Finished]) -> None:
    """Keep what came home with a result."""
    store: Store | None = getattr(work, "store", None)
    if store is not None:
        for each in finished:
            store.put(_RESULT, each.key, each.tensors, each.meta)


def _unique(job: Job) -> list[TensorRef]:
    return list(dict.fromkeys(job.refs.values()))


class _Away(NullStore):
    """The store of a machine that has no part in the cache: results of earlier runs, and those of one job.

    Args:
        gathers: whether results are wanted at home.
    """

    def __init__(self, *, gathers: bool):
        super().__init__()
        self.gathers = gathers
        self.kept: Mapping[str, Entry] = {}
        self.finished: list[Finished] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_away, (self.gathers,)

    def get(self, kind: str, key: str, expect: Mapping[str, tuple[int, ...]] | None = None) -> Entry | None:
        """A result of an earlier run; nothing else is there."""
        return self.kept.get(key) if kind == _RESULT else None

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> bool:
        """Put a result where it goes home."""
        if kind != _RESULT or not self.gathers:
            return False
        self.finished.append(Finished(key, {name: tensor.cpu() for name, tensor in tensors.items()}, dict(meta or {})))
        return True


def _make_away(gathers: bool) -> _Away:
    return _Away(gathers=gathers)
