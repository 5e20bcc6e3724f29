"""Three ways to call one function for many layers. None of them can change a result.

Every job computes with a number of threads that depends on its layer alone (`job.wide`), never on the
number of workers. Narrow jobs run side by side, one thread each; wide ones follow one by one with all cores.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from loraport.engine.job import LayerJob
from loraport.engine.recipe import RunOptions, cores
from loraport.errors import FileError

Result = TypeVar("Result")
Work = Callable[[LayerJob], Result]


def run_all(jobs: Sequence[LayerJob], work: "Work[Result]", options: RunOptions) -> "Iterator[Result]":
    """Yield the results of all jobs as they finish, in no particular order.

    Args:
        work: a function of one job; for the process executor it must be picklable.

    Raises:
        Whatever a job raises; jobs not yet begun are cancelled, running ones are waited for.
    """
    narrow = [job for job in jobs if not job.wide]
    wide = [job for job in jobs if job.wide]
    with _threads(1):
        yield from _run(narrow, work, options, workers=workers_for(narrow, options))
    with _threads(cores()):
        yield from _run(wide, work, options, workers=1)


def workers_for(jobs: Sequence[LayerJob], options: RunOptions) -> int:
    """How many jobs may be in flight so that the largest ones together stay within the memory limit."""
    limit = options.memory_limit()
    largest = sorted((job.peak_bytes for job in jobs), reverse=True)[: options.worker_limit()]
    count, used = 0, 0
    for size in largest:
        used += size
        if used > limit and count > 0:
            break
        count += 1
    return max(count, 1)


def _run(jobs: Sequence[LayerJob], work: "Work[Result]", options: RunOptions, workers: int) -> "Iterator[Result]":
    if options.executor == "serial" or not jobs:
        yield from map(work, jobs)
        return
    with _pool(options, workers) as pool:
        waiting = iter(jobs)
        running: set[Future] = set()
        try:
            while True:
                for job in waiting:  # a window, so that finished results are taken before many more are made
                    with _interrupts_held():
                        running.add(pool.submit(work, job))
                    if len(running) >= workers + 1:
                        break
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise FileError(
                "a worker process was killed",
                values="most often the system ran out of memory",
                fix="use fewer workers (--workers 1) or a smaller --max-memory; finished layers are kept",
            ) from error
        finally:
            for future in running:
                future.cancel()


def _pool(options: RunOptions, workers: int) -> Executor:
    if options.executor == "process":
        # spawn: a forked child would inherit locks of the parent's threads
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            workers, mp_context=context, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )
    return ThreadPoolExecutor(
        workers, "loraport", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    )


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; workers started meanwhile inherit that they do not hear it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
