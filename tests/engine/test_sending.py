"""Work on a machine that does not see the files: it is sent what it reads, and does the same.

The machine is this process while the folder of the files has another name; what goes there and back is pickled. Ray
carries the same parcels in `test_ray.py`.
"""

import os
import pickle
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.engine import reading
from loraport.engine.cluster import sending
from loraport.engine.executor import Slot, files_read
from loraport.engine.options import RunOptions
from loraport.errors import FileError, NumericalError

SLOT = Slot("cpu", 1, 10**9)


class Elsewhere:
    """An executor on a machine without the files.

    Args:
        folder: that they are in.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.parcels: list[sending.Parcel] = []

    def slots(self) -> list[Slot]:
        return [SLOT]

    def run(self, jobs, work) -> Iterator:
        there = pickle.dumps(sending.away(work))
        for job in jobs:
            parcel = sending.pack(work, job)
            self.parcels.append(parcel)
            assert sum(part.nbytes for part in parcel.sent.stored.values()) <= sending.bytes_read(job)
            posted = pickle.dumps((job, SLOT, parcel))
            hidden = self.folder.rename(self.folder.with_name("hidden"))
            try:
                assert not any(file.exists() for file in files_read(work))
                came = pickle.dumps(sending.unpack(pickle.loads(there), *pickle.loads(posted)))
            finally:
                hidden.rename(self.folder)
            result, finished = pickle.loads(came)
            sending.take_home(work, finished)
            yield result

    @property
    def sent(self) -> int:
        """Tensors, of all parcels."""
        return sum(len(parcel.sent.stored) for parcel in self.parcels)


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    made = pico.write(tmp_path / "pico")
    save_file(pico.lora(9, rank=6), made.folder / "other.safetensors")
    time.sleep(0.06)  # so that digests are remembered: of files that have just changed they are not
    return made


@pytest.fixture
def elsewhere(files, monkeypatch) -> Elsewhere:
    made = Elsewhere(files.folder)
    real = loraport.engine.executor.make_executor
    monkeypatch.setattr(
        "loraport.engine.executor.make_executor", lambda name, limits: made if name == "ray" else real(name, limits)
    )
    return made


def _transferred(files, output, options, method="casa") -> tuple:
    report = loraport.transfer(
        files.lora, source=files.source, target=files.target, output=output, method=method, options=options
    )
    return output.read_bytes(), [replace(layer, seconds=0.0) for layer in report.layers], report.inputs


def _many(files, output, options, loras=("style", "other")) -> list[bytes]:
    paths = [files.folder / f"{name}.safetensors" for name in loras]
    done = loraport.transfer_many(
        paths, source=files.source, target=files.target, output=output, method="casa", options=options
    )
    assert [each.error for each in done.outcomes] == [None] * len(loras)
    return [path.read_bytes() for path in sorted(output.iterdir())]


def _resized(files, output, options) -> bytes:
    loraport.resize(files.lora, output, energy=0.9, options=options)
    return output.read_bytes()


def _extracted(files, output, options) -> bytes:
    loraport.extract(files.source, files.target, output, rank=3, options=options)
    return output.read_bytes()


def _analysed(files, output, options) -> list:
    found = loraport.analyze(files.source, files.target, files.lora, layers=r"^blocks\.1\.self", options=options)
    return [replace(layer, seconds=0.0) for layer in found.layers]


def _checked(files, output, options) -> object:
    found = loraport.check(files.lora, source=files.source, target=files.target, options=options)
    return found.verdict, found.figures


@pytest.mark.parametrize("what", [_transferred, _many, _resized, _extracted, _analysed, _checked])
def test_the_work_of_every_command_is_the_same_there(files, elsewhere, tmp_path, what):
    made = {}
    for executor in ("serial", "ray"):
        options = RunOptions(executor=executor, cache="off", log="off", device="cpu")
        made[executor] = what(files, tmp_path / executor, options)
    assert made["ray"] == made["serial"]
    assert elsewhere.sent > 0


def test_each_tensor_is_read_once_here_and_only_if_it_is_needed(files, elsewhere, tmp_path, monkeypatch):
    seen: Counter[str] = Counter()
    for name in ("digest", "read_with_sums", "stored_with_sums"):
        real = getattr(reading, name)

        def spied(ref, *more, real=real, **also):
            seen[ref.key] += ref.file.exists()
            return real(ref, *more, **also)

        monkeypatch.setattr(reading, name, spied)
    monkeypatch.setattr("loraport.engine.run.sample_for_kinship", lambda plan: [])  # looked at here besides
    options = RunOptions(executor="ray", cache="off", log="off", device="cpu")
    _transferred(files, tmp_path / "casa", options)
    assert seen.keys() == {f"{name}.weight" for name in pico.LAYERS} | load_file(files.lora).keys()
    weights = {key: count for key, count in seen.items() if key.endswith("weight") and "lora" not in key}
    assert set(weights.values()) == {2}, "source and target have the same keys"
    seen.clear()
    _transferred(files, tmp_path / "direct", options, "direct")
    assert seen.keys() == load_file(files.lora).keys()


def test_finished_layers_come_home_and_are_not_done_or_sent_again(files, elsewhere, tmp_path):
    options = RunOptions(executor="ray", cache=str(tmp_path / "cache"), log="off", device="cpu", overwrite=True)
    first = _transferred(files, tmp_path / "out", options)
    kinds = {path.parent.parent.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert kinds == {"result"}
    elsewhere.parcels.clear()
    again = _transferred(files, tmp_path / "out", options)
    assert elsewhere.sent == 0
    assert (again[0], again[2]) == (first[0], first[2])
    assert all(layer.cached for layer in again[1])
    serial = _transferred(files, tmp_path / "out", options.model_copy(update={"executor": "serial"}))
    assert serial[0] == first[0]
    assert all(layer.cached for layer in serial[1])


def test_of_many_only_the_new_one_is_done(files, elsewhere, tmp_path):
    options = RunOptions(executor="ray", cache=str(tmp_path / "cache"), log="off", device="cpu", overwrite=True)
    (alone,) = _many(files, tmp_path / "one", options, ("style",))
    assert alone in _many(files, tmp_path / "both", options)
    reports = {len(parcel.kept) for parcel in elsewhere.parcels[len(pico.LAYERS) :]}
    assert reports == {1}


def test_a_file_that_changes_meanwhile_is_an_error_here(files, elsewhere, tmp_path, monkeypatch):
    real = sending.pack

    def changed(work, job):
        os.utime(files.target)
        return real(work, job)

    monkeypatch.setattr(sending, "pack", changed)
    options = RunOptions(executor="ray", cache="off", log="off", device="cpu")
    with pytest.raises(FileError, match="changed while it was read") as caught:
        _transferred(files, tmp_path / "out", options)
    assert caught.value.where == str(files.target)


def test_a_tensor_that_changes_on_its_way_is_noticed(files, elsewhere, tmp_path, monkeypatch):
    real = sending.pack

    def damaged(work, job):
        parcel = real(work, job)
        place = next(each for each in parcel.sent.stored if each[0] == files.target)
        parcel.sent.stored[place][7] ^= 1
        return parcel

    monkeypatch.setattr(sending, "pack", damaged)
    options = RunOptions(executor="ray", cache="off", log="off", device="cpu")
    with pytest.raises(FileError, match="changed while it was read, or since it was last hashed"):
        _transferred(files, tmp_path / "out", options)


def test_errors_of_the_work_there_are_those_of_the_work_here(files, elsewhere, tmp_path):
    weights = load_file(files.target)
    weights["blocks.1.ffn.0.weight"][3, 4] = float("nan")
    save_file(weights, files.target)
    said = []
    for executor in ("serial", "ray"):
        with pytest.raises(NumericalError) as caught:
            _transferred(
                files, tmp_path / executor, RunOptions(executor=executor, cache="off", log="off", device="cpu")
            )
        said.append((caught.value.what, caught.value.where, caught.value.values))
    assert said[0] == said[1]
