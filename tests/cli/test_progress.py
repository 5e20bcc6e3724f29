"""What is said of the time that is left, by a clock that the test sets."""

import pytest

from loraport.cli import progress
from loraport.cli.console import Console
from loraport.engine.events import LayerDone
from loraport.engine.results import LayerReport


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def _done(count: int, of: int, seconds: float, *, cached: bool = False) -> LayerDone:
    layer = LayerReport("a", (2, 2), "casa", 1, 1, 1.0, {}, seconds, cached)
    return LayerDone(layer, count, of, float(count), float(of))


def _lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_the_time_until_workers_have_started_does_not_count(clock, capsys):
    told = progress.Progress(Console())
    clock.now += 60  # a cluster, its processes, PyTorch in each
    clock.now += 5
    told(_done(1, 10, seconds=5.0))
    assert _lines(capsys) == ["1/10 layers, 10 %, about 45.0 s left"]
    clock.now += 15
    told(_done(2, 10, seconds=15.0))
    assert _lines(capsys) == ["2/10 layers, 20 %, about 1 min 20 s left"]


def test_layers_from_an_earlier_run_do_not_count_whenever_they_come(clock, capsys):
    told = progress.Progress(Console())
    for count in range(1, 6):
        clock.now += 20
        told(_done(count, 10, seconds=0.1, cached=True))
    _lines(capsys)
    clock.now += 10
    told(_done(6, 10, seconds=10.0))
    assert _lines(capsys) == ["6/10 layers, 60 %, about 40.0 s left"]


def test_a_layer_from_an_earlier_run_between_others_does_not_hide_the_time(clock, capsys):
    told = progress.Progress(Console())
    clock.now += 10
    told(_done(1, 10, seconds=10.0))
    _lines(capsys)
    clock.now += 10
    told(_done(2, 10, seconds=0.0, cached=True))
    assert _lines(capsys) == ["2/10 layers, 20 %, about 1 min 20 s left"]


def test_layers_of_a_batch_come_together_each_with_its_own_time(clock, capsys):
    told = progress.Progress(Console())
    clock.now += 100
    for count in range(1, 5):
        clock.now += 0.01
        told(_done(count, 8, seconds=10.0))
    _lines(capsys)
    clock.now += 40
    told(_done(5, 8, seconds=40.0))
    assert _lines(capsys) == ["5/8 layers, 62 %, about 48.0 s left"]


def test_no_more_than_the_whole_run(clock, capsys):
    told = progress.Progress(Console())
    clock.now += 11
    told(_done(1, 2, seconds=1000.0))
    assert _lines(capsys) == ["1/2 layers, 50 %, about 11.0 s left"]
