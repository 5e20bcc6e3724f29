"""Work in another process, which reads the files itself or is sent them: it does the same, and nothing twice.

The other process is this one, while the folder of the files has another name if they are sent; what goes there and back
is pickled. Real processes do the same in `test_executor.py`, machines in `test_ray.py`.
"""

import json
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import loraport
import pico
import whole_commands
from loraport.containers.references import place
from loraport.engine import reading
from loraport.engine.apart import done_apart, outcome, take_home, told
from loraport.engine.cluster import sending
from loraport.engine.executor import Slot, files_read
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan, sample_for_kinship
from loraport.engine.recipe import Recipe
from loraport.errors import FileError, NumericalError
from whole_commands import COMMANDS, analysed, many, remembered, transferred

SLOT = Slot("cpu", 1, 10**9)


class Apart:
    """An executor in a process that reads the files."""

    def slots(self) -> list[Slot]:
        return [SLOT]

    def run(self, jobs, work) -> Iterator:
        for job in jobs:
            came = pickle.dumps(done_apart(*pickle.loads(pickle.dumps((work, job, SLOT, told(work, job))))))
            done = pickle.loads(came)
            take_home(work, done)
            yield outcome(done)


class Elsewhere:
    """An executor on a machine without the files.

    Args:
        folder: that they are in.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.parcels: list[sending.Parcel] = []
        self.decompositions = True

    def slots(self) -> list[Slot]:
        return [SLOT]

    def run(self, jobs, work) -> Iterator:
        there = pickle.dumps(sending.away(work, decompositions=self.decompositions))
        for job in jobs:
            parcel = sending.pack(work, job)
            self.parcels.append(parcel)
            assert sum(part.nbytes for part in parcel.sent.stored.values()) <= sending.bytes_read(job)
            posted = pickle.dumps((job, SLOT, told(work, job), parcel))
            hidden = self.folder.rename(self.folder.with_name("hidden"))
            try:
                assert not any(file.exists() for file in files_read(work))
                came = pickle.dumps(sending.unpack(pickle.loads(there), *pickle.loads(posted)))
            finally:
                hidden.rename(self.folder)
            done = pickle.loads(came)
            assert done.learned == {}, "what it was sent is known at home"
            take_home(work, done)
            yield outcome(done)

    @property
    def sent(self) -> int:
        """Tensors, of all parcels."""
        return sum(len(parcel.sent.stored) for parcel in self.parcels)


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    made = whole_commands.write(tmp_path / "pico")
    time.sleep(0.06)  # so that digests are remembered: of files that have just changed they are not
    return made


@pytest.fixture
def elsewhere(files, monkeypatch) -> Elsewhere:
    made = {"ray": Elsewhere(files.folder), "process": Apart()}
    real = loraport.engine.executor.make_executor
    monkeypatch.setattr(
        "loraport.engine.executor.make_executor", lambda name, limits: made.get(name) or real(name, limits)
    )
    return made["ray"]


@pytest.fixture
def seen(monkeypatch) -> Counter:
    """How often each tensor is read where the files are seen, and how often digested: by what, file and name."""
    counts: Counter[tuple[str, Path, str]] = Counter()
    for name in ("sums_of", "read_with_sums", "stored_with_sums", "subtract"):
        real = getattr(reading, name)

        def spied(ref, *more, name=name, real=real, **also):
            for each in (ref, *more[:1]) if name == "subtract" else (ref,):
                if each.file.exists():
                    counts["read", each.file, place(each)] += 1
            if ref.file.exists() and name != "subtract" and also.get("digest", True):
                counts["digested", ref.file, place(ref)] += 1
            return real(ref, *more, **also)

        monkeypatch.setattr(reading, name, spied)
    return counts


def _entries(cache: Path) -> dict[Path, bytes]:
    return {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.safetensors")}


def _counts(seen: Counter, what: str) -> dict[tuple[Path, str], int]:
    return {(file, name): count for (kind, file, name), count in seen.items() if kind == what}


@pytest.mark.parametrize("what", COMMANDS)
def test_the_work_of_every_command_is_the_same_there_and_what_is_known_of_the_files_afterwards(
    files, elsewhere, tmp_path, what, seen
):
    made, known = {}, {}
    for executor in ("serial", "process", "ray"):
        cache = tmp_path / f"cache of {executor}"
        options = RunOptions(executor=executor, cache=str(cache), log="off", device="cpu")
        made[executor] = what(files, tmp_path / executor, options)
        known[executor] = remembered(cache)
        assert set(_counts(seen, "digested").values()) == {1}, f"{executor} digests something twice"
        seen.clear()
    assert made["process"] == made["serial"]
    assert made["ray"] == made["serial"]
    assert known["process"] == known["serial"]
    for file, digests in known["serial"].items():
        assert digests.items() <= known["ray"][file].items(), "what is sent is hashed as well"
    assert elsewhere.sent > 0


@pytest.mark.parametrize("executor", ["process", "ray"])
def test_each_tensor_is_read_once_and_only_if_it_is_needed(files, elsewhere, tmp_path, monkeypatch, executor, seen):
    monkeypatch.setattr("loraport.engine.run.sample_for_kinship", lambda plan: [])  # looked at here besides
    options = RunOptions(executor=executor, cache="off", log="off", device="cpu")
    transferred(files, tmp_path / "casa", options)
    weights = {(file, f"{name}.weight") for name in pico.LAYERS for file in (files.source, files.target)}
    factors = {(files.lora, key) for key in load_file(files.lora)}
    read = _counts(seen, "read")
    assert read.keys() == weights | factors
    assert {read[each] for each in weights} == {1}
    seen.clear()
    transferred(files, tmp_path / "direct", options, "direct")
    assert _counts(seen, "read").keys() == factors


def test_what_is_looked_at_before_the_work_is_not_digested_again_and_later_runs_digest_nothing(
    files, elsewhere, tmp_path, seen
):
    options = RunOptions(executor="process", cache=str(tmp_path / "cache"), log="off", device="cpu", overwrite=True)
    transferred(files, tmp_path / "out", options)
    read = {key: count for key, count in _counts(seen, "read").items() if key[0] != files.lora}
    plan = make_plan(Recipe.build({key: str(getattr(files, key)) for key in ("lora", "source", "target")}))
    looked_at = {place(ref) for job in sample_for_kinship(plan) for ref in (job.source, job.target)}
    assert {name for (_, name), count in read.items() if count == 2} == looked_at
    assert {count for (_, name), count in read.items() if name not in looked_at} == {1}
    assert set(_counts(seen, "digested").values()) == {1}
    seen.clear()
    shutil.rmtree(tmp_path / "cache" / "basis")
    transferred(files, tmp_path / "out", options, "matched-gain")
    weights = {file for file, _ in _counts(seen, "read")}
    assert weights == {files.lora, files.source, files.target}
    assert _counts(seen, "digested") == {}


def test_a_remembered_digest_that_is_not_true_is_forgotten_at_home(files, elsewhere, tmp_path):
    cache = tmp_path / "cache"
    options = RunOptions(executor="process", cache=str(cache), log="off", device="cpu", overwrite=True)
    right = transferred(files, tmp_path / "out", options)[0]
    for of_many in (False, True):
        for kind in ("basis", "prepared", "result"):
            shutil.rmtree(cache / kind)
        for page in (cache / "digests").rglob("*.json"):
            said = json.loads(page.read_text())
            if str(files.target) in said["identity"]:
                said["digests"] = dict.fromkeys(said["digests"], "ab" * 32)
                page.write_text(json.dumps(said))
        if of_many:
            done = loraport.transfer_many(
                [files.lora], source=files.source, target=files.target, output=tmp_path / "many", options=options
            )
            assert "changed" in str(done.outcomes[0].error)
        else:
            with pytest.raises(FileError, match="changed"):
                transferred(files, tmp_path / "out", options)
        assert transferred(files, tmp_path / "out", options)[0] == right  # again, as the message says


def test_finished_layers_come_home_and_are_not_done_or_sent_again(files, elsewhere, tmp_path):
    options = RunOptions(executor="ray", cache=str(tmp_path / "cache"), log="off", device="cpu", overwrite=True)
    elsewhere.decompositions = False
    first = transferred(files, tmp_path / "out", options)
    assert {path.parts[0] for path in _entries(tmp_path / "cache")} == {"result"}
    elsewhere.parcels.clear()
    again = transferred(files, tmp_path / "out", options)
    assert elsewhere.sent == 0
    assert (again[0], again[2]) == (first[0], first[2])
    assert all(layer.cached for layer in again[1])
    serial = transferred(files, tmp_path / "out", options.model_copy(update={"executor": "serial"}))
    assert serial[0] == first[0]
    assert all(layer.cached for layer in serial[1])


@pytest.mark.parametrize("what", [transferred, many, analysed])
def test_decompositions_that_come_home_are_those_of_the_work_here(files, elsewhere, tmp_path, what):
    kept = {}
    for executor in ("serial", "ray"):
        cache = tmp_path / f"cache of {executor}"
        what(files, tmp_path / executor, RunOptions(executor=executor, cache=str(cache), log="off", device="cpu"))
        kept[executor] = _entries(cache)
    assert {path.parts[0] for path in kept["serial"]} > {"result"}
    assert kept["ray"].keys() == kept["serial"].keys()
    assert all(kept["ray"][path] == data for path, data in kept["serial"].items() if path.parts[0] != "result")


def test_of_many_only_the_new_one_is_done(files, elsewhere, tmp_path):
    options = RunOptions(executor="ray", cache=str(tmp_path / "cache"), log="off", device="cpu", overwrite=True)
    (alone,) = many(files, tmp_path / "one", options, ("style",))
    assert alone in many(files, tmp_path / "both", options)
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
        transferred(files, tmp_path / "out", options)
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
        transferred(files, tmp_path / "out", options)


def test_errors_of_the_work_there_are_those_of_the_work_here(files, elsewhere, tmp_path):
    weights = load_file(files.target)
    weights["blocks.1.ffn.0.weight"][3, 4] = float("nan")
    save_file(weights, files.target)
    said = []
    for executor in ("serial", "ray"):
        with pytest.raises(NumericalError) as caught:
            transferred(files, tmp_path / executor, RunOptions(executor=executor, cache="off", log="off", device="cpu"))
        said.append((caught.value.what, caught.value.where, caught.value.values))
    assert said[0] == said[1]
