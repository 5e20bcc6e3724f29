"""Many LoRAs transferred in one job: each layer of the pair is read once and decomposed once, for all of them.

Each output is the file that a transfer of that LoRA alone would write. What goes wrong with one LoRA, or with its
file, ends that one alone. Finished layers wait on the disk beside the outputs until their LoRA has all of them, so
that memory holds the layers in work and one output, however many LoRAs there are.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loraport.containers.references import TensorRef
from loraport.engine.events import Event, Listener, PlanReady
from loraport.engine.executor import Slot, executor_for
from loraport.engine.held_bases import HeldBases
from loraport.engine.kinship import check_kinship
from loraport.engine.many.gathering import Gathering, Said
from loraport.engine.many.plan import LayerBatch, ManyPlan, batches_of
from loraport.engine.options import RunOptions
from loraport.engine.output import check_outputs
from loraport.engine.overlap import overlapped
from loraport.engine.plan import TransferPlan, sample_for_kinship
from loraport.engine.reading import InputReader
from loraport.engine.results import TransferReport
from loraport.engine.room import short_of_room
from loraport.engine.rounding import reads_drift
from loraport.engine.run_cache import layers_worth_keeping, open_cache
from loraport.engine.surroundings import usual_torch
from loraport.engine.waiting import waiting
from loraport.engine.worker import InHand, LayerResult, Worker
from loraport.errors import LoraportError
from loraport.store.store import Store

Weights = tuple[tuple[TensorRef | None, TensorRef | None, str | None], ...]
LookedAt = dict[tuple[Weights, bool], LoraportError | None]
"""What a look at some weights said, by source, target and the dtype that both are rounded to, and whether the method
reads their drift: others do not mind what is in it."""


@dataclass(frozen=True)
class BatchWorker:
    """A function of one batch and the slot that it is done in. Picklable.

    Args:
        worker: does each job.
    """

    worker: Worker

    @property
    def reader(self) -> InputReader:
        """Of the input files."""
        return self.worker.reader

    @property
    def store(self) -> Store:
        """Where finished layers are kept."""
        return self.worker.store

    def result_keys(self, batch: LayerBatch) -> list[str | None]:
        """As `Worker.result_keys`, of all jobs."""
        return [key for job in batch.jobs.values() for key in self.worker.result_keys(job)]

    def elsewhere(self, store: Store, reader: InputReader) -> "BatchWorker":
        """As `Worker.elsewhere`."""
        return BatchWorker(self.worker.elsewhere(store, reader))

    def __call__(self, batch: LayerBatch, slot: Slot) -> dict[int, "LayerResult | LoraportError"]:
        """Do the jobs one after the other with the layer's matrices in hand. What fails is handed back."""
        work = replace(self.worker, in_hand=InHand())
        if len(batch.leading) > 1:  # of one group, the matrices in hand are all there is to hold
            keeps = work.keep is None or batch.first.name in work.keep
            work = replace(work, store=HeldBases(work.store, keeps=keeps), keep=None)
        found: dict[int, LayerResult | LoraportError] = {}
        for number, job in batch.jobs.items():
            if number in batch.stopped:
                work.skip(job)
                continue
            try:
                found[number] = work(job, slot)
            except LoraportError as error:
                found[number] = error.with_traceback(None)  # its frames hold matrices
        return found


@usual_torch()
def run_many(
    plan: ManyPlan,
    outputs: Mapping[int, Path],
    folder: Path,
    options: RunOptions,
    on_event: Listener,
    *,
    also: Iterable[tuple[str, Path]] = (),
    replaced: Container[int] = (),
) -> dict[int, "TransferReport | LoraportError"]:
    """Carry out a plan for many LoRAs.

    Args:
        plan: of `make_many_plan`.
        outputs: the file of each LoRA, by its number.
        folder: where finished layers wait, on the disk of the outputs.
        options: how to use the machine.
        on_event: told about every step, from this thread.
        also: further files that the command reads, as (role, path).
        replaced: numbers of LoRAs whose output may be replaced, whatever the options say.

    Returns:
        For every LoRA its report, or what went wrong with it.

    Raises:
        UsageError: the device is unknown or not there.
        FileError: a worker was killed, or there is no room for the layers that wait. Outputs that were finished before
            stay, the others are as they were.
    """
    of_machines: list[Event] = []

    def tell(event: Event) -> None:
        of_machines.append(event)
        on_event(event)

    executor = executor_for(options, tell)
    read = list(also)
    own = {n: options.model_copy(update={"overwrite": options.overwrite or n in replaced}) for n in plan.plans}
    plan = plan.without(_failing(plan.plans, lambda n, one: check_outputs(outputs[n], one, own[n], read)))
    if not plan.plans:
        return dict(plan.failures)
    said = Said(plan.plans, on_event)
    identities = {file: state for one in plan.plans.values() for file, state in one.identities.items()}
    for message in short_of_room(plan.plans.values(), folder.absolute(), options, executor, twice=True):
        said.of_all(message)
    store, reader = open_cache(identities, options, said.of_all, executor)
    looked_at: LookedAt = {}
    plan = plan.without(_failing(plan.plans, lambda n, one: _check_pair(one, reader, store, looked_at)))
    run = Gathering(plan, outputs, own, reader, said, on_event, of_machines)
    if not plan.plans:
        return run.done
    for one in plan.plans.values():
        on_event(PlanReady(one))
    batches = batches_of(plan.plans, run.stopped)
    sampled = {job.name for one in plan.plans.values() for job in sample_for_kinship(one)}
    batches.sort(key=lambda batch: batch.first.name not in sampled)  # their weights have been read already
    run.expect(batches)
    first, several = [batch.first for batch in batches], len(plan.plans) > 1
    lasting = [batch.lasting for batch in batches if batch.first.source is not None]
    kept = layers_worth_keeping(lasting, options, store, reader, executor, said.of_all, several=several)
    work = Worker(store, reader, kept)
    try:
        with waiting(folder) as place, overlapped(work, first, executor) as busy:
            for results in executor.run(batches, BatchWorker(busy)):
                for number, found in results.items():
                    run.take(number, found, place)
        for problem in store.take_problems():
            said.of_all(problem.message)
    except BaseException:
        store.sweep()  # workers may have been ended in the middle of writing
        raise
    finally:
        reader.memo.flush()
    return run.done


def _failing(plans: Mapping[int, TransferPlan], check: Callable[[int, TransferPlan], None]) -> dict[int, LoraportError]:
    """Which of the LoRAs do not pass, and why."""
    found: dict[int, LoraportError] = {}
    for number, one in plans.items():
        try:
            check(number, one)
        except LoraportError as error:
            found[number] = error
    return found


def _check_pair(plan: TransferPlan, reader: InputReader, store: Store, looked_at: LookedAt) -> None:
    """`check_kinship`, once for LoRAs that look at the same weights. The reader holds those of the first."""
    sample = sample_for_kinship(plan)
    weights = tuple((job.source, job.target, job.round_to) for job in sample)
    look = weights, any(map(reads_drift, sample))
    if look not in looked_at:
        try:
            check_kinship(plan, sample, reader, store, rounding=True)
            looked_at[look] = None
        except LoraportError as error:
            looked_at[look] = error
        held, _ = next(iter(looked_at))
        for job, these in zip(sample, weights, strict=True):
            if these not in held:
                reader.drop(job.refs.values())
    said = looked_at[look]
    if said is not None:
        raise said
