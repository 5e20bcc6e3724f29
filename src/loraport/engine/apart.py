"""Work in another process: what goes there with a job, and what comes home with its result.

A copy of the work reads for itself, and would hash what others have hashed. So what is known of the tensors of a job is
told to it, and what it learned of them comes home, whether the job succeeds or not, and is kept there. A machine that
has no part in the cache sends its finished layers along.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from loraport.containers.references import TensorRef
from loraport.engine.executor import J, Result, Slot, Work, in_slot
from loraport.engine.job import Job
from loraport.engine.known_digests import KnownDigests, Pages
from loraport.errors import LoraportError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """An entry for the store.

    Attributes:
        kind: of the entry.
        key: under which it is kept.
        tensors: its content.
        meta: texts that go with it.
    """

    kind: str
    key: str
    tensors: "Mapping[str, Tensor]"
    meta: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What comes home.

    Attributes:
        result: what the work returned; None where it failed.
        error: why it failed.
        learned: digests of what was read there.
        kept: entries for the store at home.
    """

    result: Result | None
    error: LoraportError | None
    learned: Pages
    kept: tuple[Kept, ...] = ()


def told(work: Work[J, Result], job: J) -> Pages:
    """What is known at home of the tensors that a job reads."""
    reader = _reader(work)
    return {} if reader is None else reader.told(refs_of(job))


def done_apart(work: Work[J, Result], job: J, slot: Slot, told: Pages) -> Done[Result]:
    """Do a job in another process. What is wrong with it is handed back; a fault of the program is raised.

    Args:
        work: as it came here.
        job: the job.
        slot: where it is done.
        told: what `told` said at home.
    """
    reader = _reader(work)
    if reader is not None:
        reader.hear(told)
    result, failed = None, None
    try:
        result = in_slot(work, job, slot)
    except LoraportError as error:
        failed = error.with_traceback(None)  # its frames hold matrices
    return Done(result, failed, {} if reader is None else reader.learned())


def take_home(work: object, done: Done[Result]) -> None:
    """Keep what was learned, and the entries for the store."""
    reader = _reader(work)
    if reader is not None:
        reader.learn(done.learned)
    for each in done.kept:
        work.store.put(each.kind, each.key, each.tensors, each.meta)  # type: ignore[attr-defined]


def outcome(done: Done[Result]) -> Result:
    """What the work returned. Raises what went wrong with it."""
    if done.error is not None:
        raise done.error
    return done.result  # type: ignore[return-value]


def refs_of(job: Job) -> Iterable[TensorRef]:
    """The tensors that a job reads, each once."""
    return dict.fromkeys(job.refs.values())


def _reader(work: object) -> KnownDigests | None:
    reader = getattr(work, "reader", None)
    return reader if isinstance(reader, KnownDigests) else None
