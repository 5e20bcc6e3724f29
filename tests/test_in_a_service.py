"""What `docs/python.md` promises to programs that call the package: side by side, cancelled, and nothing touched."""

import asyncio
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

import loraport
import pico
from loraport.engine.events import Event, LayerDone
from loraport.engine.options import RunOptions
from loraport.errors import FileError

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text("utf-8")


@pytest.fixture
def files(tmp_path: Path) -> pico.Pico:
    return pico.write(tmp_path / "pico")


def carried(files: pico.Pico, output: Path | None, **options) -> loraport.TransferReport:
    machine = {"cache": "off", "log": "off", "workers": 1} | options
    return loraport.transfer(
        files.lora, source=files.source, target=files.target, output=output, options=RunOptions(**machine)
    )


def test_calls_side_by_side_write_the_same_bytes(files: pico.Pico, tmp_path: Path) -> None:
    expected = tmp_path / "alone.safetensors"
    carried(files, expected)

    async def several() -> None:
        outputs = [tmp_path / f"{number}.safetensors" for number in range(2)]
        calls = (asyncio.to_thread(carried, files, each, cache=str(tmp_path / "cache")) for each in outputs)
        reports = await asyncio.gather(*calls)
        assert [report.output for report in reports] == outputs

    asyncio.run(several())
    for number in range(2):
        assert (tmp_path / f"{number}.safetensors").read_bytes() == expected.read_bytes()


def test_what_the_listener_raises_ends_the_job(files: pico.Pico, tmp_path: Path) -> None:
    example: dict = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, example)
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        if isinstance(event, LayerDone):
            threading.Thread(target=example["cancel"].set).start()
            assert example["cancel"].wait(10)
        example["listen"](event)

    before, folder = threading.active_count(), tmp_path / "made"
    with pytest.raises(example["Cancelled"]):
        loraport.transfer(
            files.lora, source=files.source, target=files.target, output=folder / "out.safetensors", on_event=listen,
            options=RunOptions(cache="off", log="off", workers=2),
        )  # fmt: skip
    assert sum(isinstance(event, LayerDone) for event in seen) == 1
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert threading.active_count() == before


def _process() -> dict[str, object]:
    """All but Python's own random numbers, which beartype draws from to check shapes."""
    return {
        "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(), "device": torch.get_default_device(),
        "precision": torch.get_float32_matmul_precision(), "tf32": torch.backends.cudnn.allow_tf32,
        "gradients": torch.is_grad_enabled(), "random": torch.get_rng_state().tolist(),
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
        "filters": list(warnings.filters), "folder": os.getcwd(), "environment": dict(os.environ),
        "hooks": (sys.excepthook, threading.excepthook), "recursion": sys.getrecursionlimit(),
    }  # fmt: skip


def test_nothing_of_the_process_is_touched_or_said(files: pico.Pico, tmp_path: Path, capfd) -> None:
    output = tmp_path / "out.safetensors"
    before = _process()
    carried(files, output)
    loraport.check(files.lora, source=files.source, target=files.target)
    loraport.inspect(output)
    loraport.convert(output, tmp_path / "other.safetensors", to="diffusers")
    loraport.verify(output, load=False)
    loraport.merge(files.lora, into=files.source, output=tmp_path / "merged.safetensors")
    after = _process()
    assert {name for name in before if before[name] != after[name]} == set()
    assert capfd.readouterr() == ("", "")


def test_reports_and_errors_travel(files: pico.Pico, tmp_path: Path) -> None:
    plan = loraport.plan(loraport.Recipe(lora=str(files.lora), source=str(files.source), target=str(files.target)))
    for each in (carried(files, None), plan):
        assert pickle.loads(pickle.dumps(each)) == each
    with pytest.raises(FileError) as caught:
        carried(files, files.lora)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (type(error), error.to_json()) == (FileError, caught.value.to_json())


def test_a_notebook_shows_a_few_lines_of_a_result_and_not_its_layers(files: pico.Pico, tmp_path: Path) -> None:
    models = {"source": str(files.source), "target": str(files.target)}
    plan = loraport.plan(loraport.Recipe(lora=str(files.lora), **models))
    grid = {**models, "strength": [1.0]}
    for each in (
        plan, plan.source, plan.adapter, carried(files, None), loraport.check(files.lora, **models),
        loraport.resize(files.lora, tmp_path / "small.safetensors", rank=2), loraport.analyze(**models),
        loraport.sweep(files.lora, grid, output=tmp_path / "sweep"),
    ):  # fmt: skip
        assert len(repr(each)) < 4000, type(each)


def test_a_broken_diffusers_is_no_reason_to_fail(files: pico.Pico, tmp_path: Path) -> None:
    """As where no folder for temporary files can be written: torch's compiler, which it imports, wants one."""
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "__init__.py").write_text("raise FileNotFoundError(2, 'No usable temporary directory')")
    found = f"loraport.verify({str(files.lora)!r}).checks"
    code = f"import loraport; print([check.found for check in {found} if 'diffusers' in check.name])"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True
    )
    assert "not looked at: diffusers cannot be imported: [Errno 2] No usable temporary directory" in done.stdout
