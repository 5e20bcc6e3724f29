"""A merge that was stopped goes on where it was, and writes what it would have written at one go."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import loraport
import pico
from loraport.containers.safetensors import read_header
from loraport.engine.events import Warned, Written
from loraport.errors import FileError, NumericalError
from loraport.merging.report import MergeReport
from storage import write_gguf

resource = pytest.importorskip("resource", reason="nothing stays where folders cannot be locked")

STATE = {key: tensor.bfloat16() for key, tensor in pico.weights(1).items()}
CHANGED = {f"{name}.weight" for name in pico.LAYERS}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file(pico.lora(3), tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def _stop(share: float) -> Callable[[object], None]:
    """Ctrl-C when that share is written."""

    def listen(event: object) -> None:
        if isinstance(event, Written) and event.done >= share * event.total:
            raise KeyboardInterrupt

    return listen


def _stopped(*words: object, share: float = 0.6, **choices: object) -> Path:
    """Where a merge that was stopped left its work."""
    output = Path(words[2])
    with pytest.raises(KeyboardInterrupt):
        loraport.merge(*words, on_event=_stop(share), **choices)
    return next((output if output.is_dir() else output.parent).glob(".*.partial"))


def _figures(report: MergeReport) -> MergeReport:
    return replace(report, output=Path(), files=(), continued=0, seconds=0.0)


def _shards(folder: Path) -> Path:
    folder.mkdir()
    keys = list(STATE)
    weight_map = {}
    for number in range(2):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({key: STATE[key] for key in keys[number::2]}, folder / name)
        weight_map |= dict.fromkeys(keys[number::2], name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _torch_file(path: Path) -> Path:
    key = "blocks.0.ffn.0.weight"
    torch.save({"generator": STATE | {key: STATE[key].T.contiguous().T}, "step": 3}, path)
    return path


def _fp8() -> dict[str, Tensor]:
    return {key: t.to(torch.float8_e4m3fn) if key in CHANGED or "time_p" in key else t for key, t in STATE.items()}


def _fp8_file(path: Path) -> Path:
    save_file(_fp8(), path)
    return path


def _fp8_torch_file(path: Path) -> Path:
    torch.save({"generator": _fp8(), "step": 3}, path)
    return path


def _gguf_file(path: Path) -> Path:
    kind = gguf.GGMLQuantizationType.Q4_0
    stored = {key: (tensor.float().numpy(), "F32") for key, tensor in STATE.items()}
    changed = {key: (gguf.quants.quantize(stored[key][0], kind), "Q4_0") for key in CHANGED}
    return write_gguf(path, stored | changed)


PLAIN = {"dequantize": "bfloat16"}
MODELS = {
    "shards": (_shards, "shards", {}, 0.6),
    "a torch file": (_torch_file, "model.pt", {}, 0.6),
    "a file in which weights become plain": (_fp8_file, "model.safetensors", PLAIN, 0.6),
    "a torch file in which weights become plain": (_fp8_torch_file, "model.pt", PLAIN, 0.2),  # new numbers first
    "a GGUF file in which weights become plain": (_gguf_file, "model.gguf", PLAIN, 0.8),
}


@pytest.mark.parametrize("layout", MODELS)
def test_it_goes_on_and_writes_the_same(lora, tmp_path, layout):
    make, name, choices, share = MODELS[layout]
    into, whole, output = make(tmp_path / name), tmp_path / "whole" / name, tmp_path / "out" / name
    wanted = loraport.merge(lora, into, whole, **choices)
    assert wanted.continued == 0
    _stopped(lora, into, output, share=share, **choices)
    _stopped(lora, into, output, share=0.01, **choices)  # stopped again before it had looked at anything
    assert not any(path.is_file() and ".partial" not in str(path) for path in (tmp_path / "out").rglob("*"))
    said: list[object] = []
    report = loraport.merge(lora, into, output, on_event=said.append, **choices)
    assert 0 < report.continued < report.tensors
    assert _figures(report) == _figures(wanted)
    written = [event.done for event in said if isinstance(event, Written)]
    assert written == sorted(written)
    assert {file.name: file.read_bytes() for file in report.files} == {
        file.name: file.read_bytes() for file in wanted.files
    }
    assert list(tmp_path.rglob("*.partial")) == []


def test_another_merge_begins_anew(lora, model, tmp_path):
    output = tmp_path / "out.safetensors"
    _stopped(lora, model, output)
    loraport.merge(lora, model, tmp_path / "whole.safetensors", strength=0.5)
    assert loraport.merge(lora, model, output, strength=0.5).continued == 0
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert list(tmp_path.rglob("*.partial")) == []
    for file, tensors in ((lora, pico.lora(4)), (model, {key: -tensor for key, tensor in STATE.items()})):
        output.unlink()
        _stopped(lora, model, output)
        save_file(tensors, file)
        assert loraport.merge(lora, model, output).continued == 0
        loraport.merge(lora, model, tmp_path / "whole.safetensors", overwrite=True)
        assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_what_is_not_whole_is_written_anew(lora, model, tmp_path):
    output, whole = tmp_path / "out.safetensors", tmp_path / "whole.safetensors"
    wanted = loraport.merge(lora, model, whole)
    header = read_header(whole)
    begin = min(header.spans[key].start for key in CHANGED)

    def one_byte(data: bytearray) -> None:
        data[begin] ^= 1

    def cut(data: bytearray) -> None:
        del data[begin + 1 :]

    def torn(data: bytearray) -> None:  # as a file system leaves what had not reached the disk
        data[: len(data) // 2] = bytes(len(data) // 2)

    def longer(data: bytearray) -> None:
        data += b"more"

    for name, damage, lost in (
        ("data", one_byte, 1),
        ("data", cut, None),
        ("data", longer, 0),
        ("journal", torn, None),
        ("journal", lambda data: data.extend(b"00000000 [1"), 0),
    ):
        left = _stopped(lora, model, output)
        there = sum(len(line) > 1 for line in (left / "journal").read_bytes().splitlines())
        content = bytearray((left / name).read_bytes())
        damage(content)
        (left / name).write_bytes(content)
        report = loraport.merge(lora, model, output)
        assert report.continued < there if lost is None else report.continued == there - lost
        assert output.read_bytes() == whole.read_bytes()
        assert _figures(report) == _figures(wanted)
        output.unlink()


def test_two_at_once_into_one_output(lora, model, tmp_path):
    """The one that comes later finds the work of the first in use, and does its own."""
    output, whole = tmp_path / "out.safetensors", tmp_path / "whole.safetensors"
    loraport.merge(lora, model, whole)
    _stopped(lora, model, output)
    second: list[MergeReport] = []

    def meanwhile(event: object) -> None:
        if isinstance(event, Written) and event.done >= 0.8 * event.total and not second:
            second.append(loraport.merge(lora, model, output))
            assert output.read_bytes() == whole.read_bytes()

    with pytest.raises(FileError, match="appeared while"):
        loraport.merge(lora, model, output, on_event=meanwhile)
    assert second[0].continued == 0
    assert output.read_bytes() == whole.read_bytes()
    report = loraport.merge(lora, model, output, overwrite=True)  # all of the first one's work waits
    assert report.continued == report.tensors
    assert output.read_bytes() == whole.read_bytes()
    assert list(tmp_path.rglob("*.partial")) == []


def test_no_room_and_what_cannot_be_done(lora, tmp_path):
    """The operating system's answer to a file that grows too large, which is that of a full disk."""
    path, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    state = {key: tensor if key in CHANGED else tensor.float() for key, tensor in STATE.items()}  # these lie in front
    save_file(state, path)
    whole = loraport.merge(lora, path, tmp_path / "whole.safetensors").output
    starts = sorted(read_header(whole).spans[key].start for key in CHANGED)
    limits, said = resource.getrlimit(resource.RLIMIT_FSIZE), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (starts[len(starts) // 2] + 10, limits[1]))
    try:
        with pytest.raises(FileError, match="larger than the limit on file sizes"):
            loraport.merge(lora, path, output, on_event=said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (left,) = tmp_path.glob(".*.partial")
    assert str(left) in "".join(event.message for event in said if isinstance(event, Warned))
    report = loraport.merge(lora, path, output)
    assert 0 < report.continued < report.tensors
    assert output.read_bytes() == whole.read_bytes()
    save_file({key: tensor.half() for key, tensor in STATE.items()}, path)
    with pytest.raises(NumericalError, match="no longer fits into F16"):
        loraport.merge(lora, path, tmp_path / "never.safetensors", strength=1e7)
    assert list(tmp_path.rglob("*.partial")) == []


@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize("layout", ["as it was", *(name for name, (*_, choices, _) in MODELS.items() if choices)])
def test_killed_midway_it_goes_on(lora, model, tmp_path, layout):
    make, name, choices, share = MODELS.get(layout, (None, "merged.safetensors", {}, 0.5))
    model = model if make is None else make(tmp_path / name)
    code = (
        "import os, signal, sys, torch, loraport\n"
        "from loraport.engine.events import Written\n"
        "def kill(event):\n"
        f"    if isinstance(event, Written) and event.done > {share} * event.total:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.set_num_threads(int(sys.argv[4]))\n"
        f"loraport.merge(*sys.argv[1:4], on_event=kill, **{choices})\n"
    )
    output, threads = tmp_path / "out" / name, str(torch.get_num_threads())
    words = [sys.executable, "-c", code, str(lora), str(model), str(output), threads]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert [path.suffix for path in output.parent.iterdir()] == [".partial"]  # hidden
    wanted = loraport.merge(lora, model, tmp_path / "whole" / name, **choices)
    report = loraport.merge(lora, model, output, **choices)
    assert list(output.parent.iterdir()) == [output]
    assert 0 < report.continued < report.tensors
    assert _figures(report) == _figures(wanted)
    assert output.read_bytes() == wanted.output.read_bytes()
