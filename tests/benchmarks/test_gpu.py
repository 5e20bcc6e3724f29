"""The script for cards: tried as a whole on the CPU, and its arithmetic by itself."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpu_session
import gpu_targets
import gpu_where
from loraport.engine.events import LayerDone, Warned

SCRIPT = Path(gpu_session.__file__).with_name("gpu.py")


def test_spans_that_overlap_count_once():
    assert gpu_session.union([(0, 2e6), (1e6, 3e6), (5e6, 6e6), (5.2e6, 5.5e6)]) == pytest.approx((4.0, 6.0, 5.3))
    assert gpu_session.union([]) == (0.0, 0.0, 0.0)


def test_a_card_is_busy_while_kernels_run_and_not_while_it_copies():
    def event(name, kind, begin, end):
        return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(start=begin, end=end))

    card, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        event("sgemm", card, 0, 1e6),
        event("Memcpy HtoD (Pinned -> Device)", card, 1e6, 4e6),
        event("aten::mm", cpu, 0, 9e6),
        event("reduce", card, 7e6, 8e6),
    ]
    profiler = SimpleNamespace(events=lambda: events)
    assert gpu_session.busy_share(profiler, cuda=True) == pytest.approx((2.0, 8.0, 2.0))
    assert gpu_session.busy_share(profiler, cuda=False) == pytest.approx((9.0, 9.0, 9.0))


def test_only_what_layers_take_is_multiplied(monkeypatch):
    clock = gpu_session.Clock()
    monkeypatch.setattr(gpu_session.time, "perf_counter", iter([3.0, 4.0, 5.0]).__next__)
    for _ in range(3):
        clock(Warned("something else that is told"))
        clock(LayerDone.__new__(LayerDone))
    assert clock.whole(5.0, 20) == pytest.approx(2.0 + 3.0 * 20)
    assert gpu_session.Clock().whole(5.0, 20) == 100.0


def test_a_profiler_that_sees_nothing_is_no_idle_card(tmp_path, monkeypatch):
    one = session(tmp_path)
    monkeypatch.setattr(gpu_where, "transfer", lambda *given, **more: None)
    monkeypatch.setattr(gpu_where, "busy_share", lambda profiler, cuda: (0.0, 0.0, 0.0))
    one.step("busy, first", lambda: gpu_where._busy(one, "first"))
    assert "the profiler saw no kernel" in one.not_checked[0]
    (line,) = (line for line in gpu_targets.verdict(one).splitlines() if "busy" in line)
    assert "unmeasured" in line


def session(tmp_path, budget=100.0) -> gpu_session.Session:
    return gpu_session.Session("cpu", tiny=False, budget=budget, out=tmp_path / "f.json", work=tmp_path, blocks=2)


def test_a_target_is_met_missed_or_unmeasured(tmp_path):
    one = session(tmp_path)
    one.step("casa further, 14B", lambda: {"whole": 60.0, "blocks": 2})
    one.step("busy, first", lambda: {"share": 0.8})
    lines = {line.split(" | ")[0]: line for line in gpu_targets.verdict(one).splitlines()}
    (further,) = (line for name, line in lines.items() if "further" in name)
    assert "60 s" in further
    assert "MISSED" in further
    (busy,) = (line for name, line in lines.items() if "busy" in name)
    assert "80 %" in busy
    assert "met" in busy
    assert sum("unmeasured" in line for line in lines.values()) == len(gpu_targets.TARGETS) - 2


def test_a_step_that_fails_is_told_and_the_next_one_done(tmp_path):
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    one = session(tmp_path)
    assert one.step("bad", lambda: 1 / 0) is None
    assert one.step("too long", lambda: 1, estimate=1e6) is None
    assert one.step("good", lambda: 7) == 7
    assert one.step("too large", lambda: full()) is None
    told = json.loads((tmp_path / "f.json").read_text())
    assert told["failed"] == ["bad"]
    assert "ZeroDivisionError" in told["figures"]["bad"]["error"]
    assert told["not checked"][0].startswith("too long: it needs about")
    assert told["not checked"][1].startswith("too large: the card is too small: CUDA out of memory")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_runs_on_the_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    words = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--out", str(out), "--work", str(tmp_path)]
    words += ["--budget", "3000"]  # nothing is left out on a machine that is busy
    done = subprocess.run(words, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    told = json.loads(out.read_text())
    assert told["failed"] == []
    unmeasured = [line for line in told["figures"]["verdict"].splitlines() if "unmeasured" in line]
    assert all("over the formula" in line for line in unmeasured), unmeasured  # which counts on a card only
    named = {line.split(":")[0] for line in told["not checked"]}
    assert {"a device whose memory is full", "several devices", "what is left on a card"} <= named
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
