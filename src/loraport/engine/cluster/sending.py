"""What a job reads, put together where its files are, for a machine that does not see them; and the work there.

The machine works as it would on the files: what it was sent is held, where it is computed with, against what it added
up to while the files were read. It has no part in the cache. Finished layers go home and
are kept there; those of earlier runs are sent to it instead of tensors. Decompositions go home as well where that pays,
but are not sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from loraport.containers.sent import Place, Sent, in_place
from loraport.engine.apart import Done, Kept, done_apart, refs_of
from loraport.engine.executor import Result, Slot, Work
from loraport.engine.job import Job
from loraport.engine.known_digests import Pages
from loraport.engine.reading import InputReader
from loraport.store.entry import Entry
from loraport.store.store import NullStore, Store

RESULT = "result"

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
class Parcel:
    """What one job reads.

    Attributes:
        sent: the stored tensors; none where all of its results are there.
        kept: results of earlier runs, by key.
    """

    sent: Sent
    kept: Mapping[str, Entry]


def bytes_read(job: Job) -> int:
    """How much a parcel of a job holds at most."""
    return sum(ref.nbytes for ref in refs_of(job))


def pack(work: Sendable[J], job: J) -> Parcel:
    """Read what a job reads, once, hashed meanwhile, so that the digests of all of it are known afterwards.

    Raises:
        FileError: a file cannot be read, or changed since the plan was made.
    """
    store: Store | None = getattr(work, "store", None)
    keys = work.result_keys(job) if store is not None else []
    found = {key: store.get(RESULT, key) for key in keys if key is not None} if store is not None else {}
    kept = {key: entry for key, entry in found.items() if entry is not None}
    finished = bool(keys) and set(keys) == set(kept)
    stored: dict[Place, Any] = {}
    for ref in () if finished else refs_of(job):
        stored |= {place: part.numpy() for place, part in work.reader.send(ref).items()}
    return Parcel(Sent(work.reader.identities, stored), kept)


def unpack(work: Work[J, Result], job: J, slot: Slot, told: Pages, parcel: Parcel) -> Done[Result]:
    """Do a job with what was sent.

    Args:
        work: what `away` gave, as it came to this machine.
        job: the job.
        slot: where it is done.
        told: what is known of the tensors that it reads.
        parcel: what it reads.
    """
    store: _Away | None = getattr(work, "store", None)
    if store is not None:
        store.kept = parcel.kept
    with in_place(parcel.sent):
        done = done_apart(work, job, slot, told)
    return done if store is None else replace(done, kept=tuple(store.put_here))


def away(work: Sendable[J], *, decompositions: bool) -> Work[J, Any]:
    """The work as it is sent to machines that do not see the files.

    Args:
        work: as it is here.
        decompositions: whether those that are worth keeping are wanted at home.
    """
    store: Store | None = getattr(work, "store", None)
    if store is None or isinstance(store, NullStore):
        return work.elsewhere(_Away(()), work.reader)
    return work.elsewhere(_Away((RESULT, "basis", "prepared") if decompositions else (RESULT,)), work.reader)


class _Away(NullStore):
    """The store of a machine that has no part in the cache: results of earlier runs, and what is put there for home.

    Args:
        kinds: of entries that are wanted at home.
    """

    def __init__(self, kinds: tuple[str, ...]):
        super().__init__()
        self.kinds = kinds
        self.kept: Mapping[str, Entry] = {}
        self.put_here: list[Kept] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _Away, (self.kinds,)

    def takes(self, kind: str) -> bool:
        """As `Store.takes`."""
        return kind in self.kinds

    def get(self, kind: str, key: str, expect: Mapping[str, tuple[int, ...]] | None = None) -> Entry | None:
        """A result of an earlier run; nothing else is there."""
        return self.kept.get(key) if kind == RESULT else None

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> bool:
        """Put an entry where it goes home."""
        if not self.takes(kind):
            return False
        on_host = {name: tensor.cpu() for name, tensor in tensors.items()}
        self.put_here.append(Kept(kind, key, on_host, dict(meta or {})))
        return True
