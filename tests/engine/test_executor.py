"""Executors: same results whoever calls, bounded work in flight, errors come home."""

from dataclasses import replace

import pytest
import torch

from loraport.adapters.adapter import LayerUpdate
from loraport.engine.executor import run_all, workers_for
from loraport.engine.job import WIDE_ELEMENTS, LayerJob
from loraport.engine.recipe import RankRule, RunOptions, cores
from loraport.errors import NumericalError

UPDATE = LayerUpdate("layer", "lora", None, None, None, 1.0, "no alpha", 4, ("layer.lora_A.weight",), (4, 4))


def _job(name: str, shape=(4, 4), peak_bytes: int = 100) -> LayerJob:
    return LayerJob(
        name=name,
        shape=shape,
        method="direct",
        params={},
        update=UPDATE,
        source=None,
        target=None,
        distill=None,
        has_drift=False,
        round_to=None,
        rank=RankRule("fixed", 4),
        amount=1.0,
        dtype="float32",
        cost=1.0,
        peak_bytes=peak_bytes,
    )


def _threads(job: LayerJob) -> tuple[str, int]:
    return job.name, torch.get_num_threads()


def _fail(job: LayerJob) -> str:
    if job.name == "bad":
        raise NumericalError("not finite", where=job.name)
    return job.name


JOBS = [_job(f"layer {index}") for index in range(9)]


@pytest.fixture(autouse=True)
def _three_threads_outside():
    """Another number than any executor settles on, so that one which leaves it alone is found out."""
    before = torch.get_num_threads()
    torch.set_num_threads(3 if cores() != 3 else 2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_every_job_is_done_once_with_one_thread(executor):
    done = list(run_all(JOBS, _threads, RunOptions(executor=executor, workers=3)))
    assert sorted(done) == sorted((job.name, 1) for job in JOBS)


def test_process_workers_give_the_same():
    done = list(run_all(JOBS[:3], _threads, RunOptions(executor="process", workers=2)))
    assert sorted(done) == sorted((job.name, 1) for job in JOBS[:3])


def test_wide_layers_get_all_cores_and_the_setting_is_put_back():
    before = torch.get_num_threads()
    wide = _job("wide", shape=(WIDE_ELEMENTS, 2))
    done = dict(run_all([wide, *JOBS], _threads, RunOptions(executor="thread")))
    assert done.pop("wide") == cores()
    assert set(done.values()) == {1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("executor", "workers"), [("serial", 1), ("thread", 2), ("process", 1)])
def test_an_error_comes_home_as_itself(executor, workers):
    jobs = [JOBS[0], _job("bad"), *JOBS[1:]]
    with pytest.raises(NumericalError, match="not finite") as caught:
        list(run_all(jobs, _fail, RunOptions(executor=executor, workers=workers)))
    assert caught.value.where == "bad"


def test_memory_limits_the_number_of_workers():
    options = RunOptions(workers=4, max_memory=250)
    assert workers_for(JOBS, options) == 2
    assert workers_for([replace(JOBS[0], peak_bytes=1000), *JOBS], options) == 1  # one always runs
    assert workers_for(JOBS, RunOptions(executor="serial")) == 1
