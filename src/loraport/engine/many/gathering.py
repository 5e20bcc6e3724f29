"""The layers of many LoRAs as they come, and each output written as soon as it is whole."""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from loraport.engine.events import Event, Finished, LayerDone, Listener, Warned, Warnings
from loraport.engine.job_cost import further_cost, rank_bound
from loraport.engine.many.plan import LayerBatch, ManyPlan
from loraport.engine.options import RunOptions
from loraport.engine.plan import TransferPlan
from loraport.engine.reading import InputReader
from loraport.engine.reporting import make_report
from loraport.engine.results import TransferReport
from loraport.engine.run import judge, write_output
from loraport.engine.run_log import TransferLog
from loraport.engine.waiting import Waiting
from loraport.engine.worker import LayerResult
from loraport.errors import LoraportError


class Said:
    """Warnings: what is true of all is said once, what is true of one LoRA is said with its name."""

    def __init__(self, plans: Mapping[int, TransferPlan], on_event: Listener):
        self._plans, self._on_event = plans, on_event
        self.of_all = Warnings(on_event)  # about the machine or the models
        own = [one.warnings for one in plans.values()]
        for message in own[0] if own else ():
            if all(message in each for each in own):
                self._on_event(Warned(message))
        for number, one in plans.items():
            for message in one.warnings:
                if len(own) > 1 and not all(message in each for each in own):
                    self.of_one(number, message)

    def of_one(self, number: int, message: str) -> None:
        """Say something about a LoRA."""
        self._on_event(Warned(f"{self._plans[number].recipe.lora}: {message}"))

    def before(self, number: int) -> list[str]:
        """What was said until now that concerns a LoRA, for its report."""
        return list(dict.fromkeys([*self._plans[number].warnings, *self.of_all.told]))


class Gathering:
    """What is known in the middle of a job on many: the layers that are there, the LoRAs that are done."""

    def __init__(
        self,
        plan: ManyPlan,
        outputs: Mapping[int, Path],
        options: Mapping[int, RunOptions],
        reader: InputReader,
        said: Said,
        on_event: Listener,
        of_machines: Sequence[Event],
    ):
        self.done: dict[int, TransferReport | LoraportError] = dict(plan.failures)
        self.stopped: set[int] = set()
        self._plans, self._outputs, self._options = plan.plans, outputs, options
        self._reader, self._said, self._on_event = reader, said, on_event
        self._of_machines = of_machines  # what the executor says, as it comes
        self._jobs = {number: {job.name: job for job in one.jobs} for number, one in plan.plans.items()}
        self._missing = {number: set(jobs) for number, jobs in self._jobs.items()}
        self._costs: dict[tuple[int, str], float] = {}
        self._finished, self._spent, self._total = 0, 0.0, 0.0
        self._began = time.perf_counter()

    def expect(self, batches: Iterable[LayerBatch]) -> None:
        """Take down what each job costs: the first of those that see the same matrices pays for the others."""
        further: dict[object, float] = {}  # a model has some ten kinds of layers
        for batch in batches:
            leading = batch.leading
            for number, job in batch.jobs.items():
                kind = (job.method, job.shape, job.update.rank, rank_bound(job))
                if number not in leading and kind not in further:
                    further[kind] = further_cost(job)
                self._costs[number, job.name] = job.cost if number in leading else further[kind]
        self._total = sum(self._costs.values())

    def take(self, number: int, found: "LayerResult | LoraportError", place: Waiting) -> None:
        """Take a layer of a LoRA, or why it has none; with its last layer the output is written. Raises FileError."""
        if number in self.stopped:
            return
        if isinstance(found, LoraportError):
            self._stop(number, found)
            return
        name = found.report.name
        self._reader.drop(self._jobs[number][name].refs.values())
        for message in found.warnings:
            self._said.of_all(message)
        place.put(number, found)
        self._missing[number].discard(name)
        self._finished += 1
        self._spent += self._costs[number, name]
        self._on_event(LayerDone(found.report, self._finished, len(self._costs), self._spent, self._total))
        if not self._missing[number]:
            results = place.take(number, list(self._jobs[number]))
            try:
                self.done[number] = report = self._written(number, results)
            except LoraportError as error:
                self._stop(number, error)
            else:
                self._on_event(Finished(report))

    def _stop(self, number: int, error: LoraportError) -> None:
        self.done[number] = error
        self.stopped.add(number)

    def _written(self, number: int, results: list[LayerResult]) -> TransferReport:
        """The output of a LoRA that has all its layers, and its log."""
        plan, path = self._plans[number], self._outputs[number]
        said: list[str] = self._said.before(number)

        def warn(message: str) -> None:
            if message not in said:
                said.append(message)
                self._said.of_one(number, message)

        judge(plan, results, warn)
        report = make_report(plan, path, results, said, time.perf_counter() - self._began)
        with contextlib.closing(TransferLog()) as log:
            log.begin(path, plan, self._options[number])
            log.machines(self._of_machines)
            for layer in report.layers:
                log.layer(layer)
            own = InputReader(self._reader.memo, plan.identities)
            try:
                write_output(plan, path, results, report, own, self._options[number])
            except BaseException as error:
                log.failed(error)
                raise
            log.finished(report)
        return report
