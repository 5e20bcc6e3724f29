"""A sweep: each file as if it were alone, what is finished left alone, no failure but one's own."""

import csv
import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import loraport
import makers
import pico
from loraport import files as writing
from loraport.engine import devices
from loraport.engine.events import Finished, LayerDone
from loraport.engine.options import RunOptions
from loraport.errors import FileError, NumericalError, UsageError
from loraport.sweeping import index
from loraport.sweeping.grid import Grid
from loraport.sweeping.index import Index
from loraport.sweeping.run import plan_sweep

FEW = {name: pico.LAYERS[name] for name in ("blocks.0.self_attn.q", "blocks.1.ffn.0")}
PLAIN = RunOptions(cache="off", log="off", executor="serial")


@pytest.fixture
def files(tmp_path: Path) -> pico.Pico:
    """The pico pair, a second target, two LoRAs of a few layers, and a distillation LoRA."""
    made = pico.write(tmp_path / "pico")
    save_file(pico.distilled(load_file(made.source), 5, drift=0.1), made.folder / "other.safetensors")
    save_file(pico.lora(3, layers=FEW), made.lora)
    save_file(pico.lora(9, rank=6, layers=FEW), made.folder / "motion.safetensors")
    save_file(pico.lora(7, rank=2), made.folder / "few.safetensors")
    return made


def sweep(files: pico.Pico, output: Path, *, options: RunOptions = PLAIN, on_event=lambda event: None, **settings):
    loras = settings.pop("loras", [files.lora, files.folder / "motion.safetensors"])
    grid = {"source": files.source, "target": [files.target, files.folder / "other.safetensors"]} | settings
    return loraport.sweep(loras, grid, output=output, options=options, on_event=on_event)


def made_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


SETTINGS = [
    {"method": "direct"},
    {"method": "casa", "rank": 8, "params": {"q_dom": 0.4}},
    {"method": "casa", "rank": [12], "params": {"q_dom": [0.6]}, "amount": 0.7},
]


@pytest.mark.parametrize(
    "executor", ["serial", "thread", pytest.param("process", marks=pytest.mark.slow)]
)  # fmt: skip
def test_each_file_is_the_one_that_a_transfer_alone_writes(files, tmp_path, executor):
    targets = [files.target, f"+ {files.folder / 'few.safetensors'}:0.5"]
    options = PLAIN.model_copy(update={"executor": executor, "workers": None if executor == "serial" else 2})
    report = sweep(files, tmp_path / "made", options=options, settings=SETTINGS, target=targets)
    assert len(report.cells) == 2 * 2 * 3
    assert report.errors == {}
    for number, row in enumerate(report.cells):
        if executor != "serial" and number % 4:
            continue
        recipe = dict(row.recipe)
        recipe["target_lora"] = [loraport.AddedLora(**each) for each in recipe["target_lora"]]
        alone = tmp_path / "alone.safetensors"
        loraport.transfer(
            **recipe, output=alone, options=RunOptions(cache="off", log="off", executor="serial", overwrite=True)
        )
        assert (tmp_path / "made" / row.output).read_bytes() == alone.read_bytes(), row.name


def test_a_device_that_the_host_reads_ahead_for_makes_the_same_files(files, tmp_path, monkeypatch):
    """The slots call themselves `cpu:0`, so that they count as a device beside the host."""
    made = {}
    for name in ("cpu", "cpu:0"):
        monkeypatch.setattr(devices, "pick_devices", lambda wanted, name=name: (name,))
        folder = tmp_path / name.replace(":", "")
        options = RunOptions(cache=str(folder / "cache"), log="off", workers=2)
        report = sweep(files, folder / "made", options=options, settings=SETTINGS, loras=files.lora)
        assert report.errors == {}
        made[name] = made_in(folder / "made")
    assert made["cpu"] == made["cpu:0"]
    assert len(made["cpu"]) == 2 * 3


def test_every_weight_is_decomposed_once_for_all_cells(files, tmp_path, monkeypatch):
    from loraport.engine import layer

    decomposed = []
    decomposes = layer.thin_svd
    monkeypatch.setattr(
        layer, "thin_svd", lambda weight, name: decomposed.append(name) or decomposes(weight, name=name)
    )
    options = RunOptions(cache=str(tmp_path / "cache"), log="off", executor="serial")
    for settings in (SETTINGS, [{"method": "casa", "rank": 4}, {"method": "casa", "rank": 6}]):  # kept for the second
        report = sweep(files, tmp_path / "made", settings=settings, options=options)
        assert report.errors == {}
        assert sorted(decomposed) == sorted(FEW)


def test_the_index_says_everything_of_a_cell(files, tmp_path):
    report = sweep(files, tmp_path / "made", rank=[8, 12], method="casa", loras=files.lora)
    index = json.loads((tmp_path / "made" / "sweep.json").read_text())
    assert [row["name"] for row in index["cells"]] == [row.name for row in report.cells]
    row = index["cells"][1]
    assert row["name"] == "target/rank=12/style"
    assert (row["state"], row["settings"], row["recipe"]["rank"]) == ("done", {"rank": "12"}, "12")
    output = tmp_path / "made" / row["output"]
    from hashlib import sha256

    assert row["sha256"] == sha256(output.read_bytes()).hexdigest()
    assert row["bytes"] == output.stat().st_size
    assert {each["role"] for each in row["inputs"]} == {"LoRA", "source", "target"}
    assert all(each["digest"] for each in row["inputs"])
    assert row["figures"]["rank_out"] == 12
    assert row["figures"]["drift"] == pytest.approx(0.2, rel=0.01)
    assert index["cells"][2]["figures"]["drift"] == pytest.approx(0.1, rel=0.01)
    explained = {column["key"] for column in index["columns"]}
    assert set(row["figures"]) <= explained
    with (tmp_path / "made" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["rank"] for line in lines] == ["8", "12"] * 2
    assert float(lines[1]["change"]) == row["figures"]["change"]


@pytest.mark.parametrize("amount", [1.0, 0.3])
def test_change_and_cosine_are_those_of_the_matrices(files, tmp_path, amount):
    asked = {"casa": {}, "matched-gain": {}, "direct": {}, "direct at a strength": {"strength": -0.5}}
    for method, params in asked.items():
        settings = {"method": method.split()[0], "params": params, "amount": amount, "rank": "full"}
        report = sweep(files, tmp_path / method, loras=files.lora, target=files.target, **settings)
        (row,) = report.cells
        new, old = load_file(tmp_path / method / row.output), load_file(files.lora)
        change = given = made = along = 0.0
        for name in FEW:
            key = f"diffusion_model.{name}.lora_"
            D = old[f"{key}B.weight"].double() @ old[f"{key}A.weight"].double()
            E = new[f"{key}B.weight"].double() @ new[f"{key}A.weight"].double()
            change, given = change + float((E - D).norm()) ** 2, given + float(D.norm()) ** 2
            made, along = made + float(E.norm()) ** 2, along + float((E * D).sum())
        assert row.figures["change"] == pytest.approx(math.sqrt(change / given), abs=1e-5), method
        assert row.figures["cosine"] == pytest.approx(along / math.sqrt(made * given), abs=1e-5), method


def test_the_same_call_again_makes_nothing_anew(files, tmp_path):
    first = sweep(files, tmp_path / "made", rank=[8, 12], method="direct")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*.safetensors")}
    events = []
    again = sweep(files, tmp_path / "made", rank=[8, 12], method="direct", on_event=events.append)
    assert not [event for event in events if isinstance(event, LayerDone)]
    assert again.kept == {row.name for row in first.cells}
    assert again.cells == first.cells
    assert {path: path.stat().st_mtime_ns for path in before} == before
    more = sweep(files, tmp_path / "made", rank=[8, 12, 16], method="direct", on_event=events.append)
    assert more.kept == again.kept
    assert len([event for event in events if isinstance(event, Finished)]) == 4
    fewer = sweep(files, tmp_path / "made", rank=[8, 12], method="direct", target=files.target)
    rows = json.loads((tmp_path / "made" / "sweep.json").read_text())["cells"]
    assert (len(fewer.cells), len(rows)) == (4, 12)  # what earlier calls made is still told of


def test_the_same_call_from_another_folder_makes_nothing_anew(files, tmp_path, monkeypatch):
    few = files.folder / "few.safetensors"
    sweep(files, tmp_path / "made", method="direct", target=[files.target, f"+ {few}"], loras=files.lora)
    monkeypatch.chdir(files.folder)
    again = loraport.sweep(
        files.lora.name, {"source": files.source.name, "target": [files.target.name, "+ few.safetensors"],
        "method": "direct"}, output=tmp_path / "made", options=PLAIN,
    )  # fmt: skip
    assert len(again.kept) == 2
    beside = loraport.sweep(
        files.lora.name, {"source": files.source.name, "target": files.target.name, "method": "direct"},
        output="made", options=PLAIN,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert beside.kept == frozenset()
    again = sweep(files, files.folder / "made", method="direct", target=files.target, loras=files.lora)
    assert len(again.kept) == 1


def test_interrupted_it_goes_on(files, tmp_path):
    settings = {
        "target": files.target,
        "rank": [8, 12],
        "method": "casa",
        "options": PLAIN.model_copy(update={"cache": str(tmp_path / "c")}),
    }
    sweep(files, tmp_path / "other", **settings | {"options": PLAIN})

    def stop(event):
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(files, tmp_path / "made", **settings, on_event=stop)
    states = [row["state"] for row in json.loads((tmp_path / "made" / "sweep.json").read_text())["cells"]]
    assert sorted(states) == ["done", *["pending"] * 3]
    assert len(made_in(tmp_path / "made")) == 1
    report = sweep(files, tmp_path / "made", **settings)
    assert (len(report.kept), report.errors) == (1, {})
    assert made_in(tmp_path / "made") == made_in(tmp_path / "other")


def test_all_that_the_cache_has_room_for_is_kept_of_both_experts(files, tmp_path):
    for model, drift in (("base", 0.0), ("fast", 0.1)):
        for number, name in enumerate(("high_noise_model", "low_noise_model")):
            (tmp_path / model / name).mkdir(parents=True)
            state = pico.distilled(pico.weights(30 + number), 40 + number, drift)
            save_file(state, tmp_path / model / name / "diffusion_pytorch_model.safetensors")
    report = sweep(
        files, tmp_path / "made", source=tmp_path / "base", target=tmp_path / "fast", expert=["high", "low"],
        loras=[files.lora], options=PLAIN.model_copy(update={"cache": str(tmp_path / "c")}),
    )  # fmt: skip
    assert [row.state for row in report.cells] == ["done", "done"]
    assert not [text for row in report.cells for text in row.warnings if "layers are kept" in text]
    assert len(list((tmp_path / "c" / "basis").rglob("*.safetensors"))) == 2 * len(FEW)


def test_two_at_work_in_one_folder(files, tmp_path):
    refused = []

    def again(event):
        if isinstance(event, Finished) and not refused:
            with pytest.raises(FileError, match="another sweep is running") as error:
                sweep(files, tmp_path / "made", method="direct")
            refused.append(error)

    report = sweep(files, tmp_path / "made", method="direct", on_event=again)
    assert refused
    assert report.errors == {}
    again = sweep(files, tmp_path / "made", method="direct")
    assert len(again.kept) == len(report.cells)


def test_a_plan_says_that_the_index_is_somebody_elses(files, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "sweep.csv").write_text("mine")
    index = Index(tmp_path / "made", Grid(source="s", target="t"))
    with pytest.raises(FileError, match="did not make"):
        plan_sweep([], index, PLAIN)


def test_an_output_that_a_killed_sweep_could_not_tell_of_is_made_again(files, tmp_path):
    sweep(files, tmp_path / "made", rank=[8, 12], method="direct", target=files.target)
    whole, path = made_in(tmp_path / "made"), tmp_path / "made" / "sweep.json"
    index = json.loads(path.read_text())
    index["cells"][0] |= {"state": "pending", "sha256": None}
    path.write_text(json.dumps(index))
    report = sweep(files, tmp_path / "made", rank=[8, 12], method="direct", target=files.target)
    assert (len(report.kept), report.errors) == (3, {})
    assert made_in(tmp_path / "made") == whole


def test_what_fails_ends_its_own_cells(files, tmp_path):
    bad = pico.lora(12, layers=FEW)
    bad["diffusion_model.blocks.1.ffn.0.lora_A.weight"][0, 0] = float("nan")
    save_file(bad, files.folder / "bad.safetensors")
    (files.folder / "junk.safetensors").write_bytes(b"junk")
    loras = [files.folder / f"{name}.safetensors" for name in ("bad", "junk", "motion")]
    targets = [files.target, files.folder / "absent.safetensors"]
    report = sweep(files, tmp_path / "made", loras=loras, target=targets, method="direct", rank=[8, 12])
    states = {row.name: row.state for row in report.cells}
    done = {"target/rank=8/motion", "target/rank=12/motion"}
    assert {name for name, state in states.items() if state == "done"} == done
    assert {name for name, state in states.items() if state == "failed"} == set(report.errors)
    assert len(states) == 12
    assert isinstance(report.errors["target/rank=8/bad"], NumericalError)
    assert isinstance(report.errors["absent/rank=8/motion"], FileError)
    rows = json.loads((tmp_path / "made" / "sweep.json").read_text())["cells"]
    assert all(row["error"]["what"] for row in rows if row["state"] == "failed")
    assert len(made_in(tmp_path / "made")) == 2


def test_what_is_wrong_with_all_is_said_once_and_nothing_is_written(files, tmp_path):
    with pytest.raises(FileError):
        sweep(files, tmp_path / "made", target=files.folder / "absent.safetensors")
    with pytest.raises(UsageError, match="no method"):
        sweep(files, tmp_path / "made", method=["direct", "nonsense"])
    assert not (tmp_path / "made").exists()


class TestWhatIsThere:
    """Nothing that the sweep did not make is replaced, and nothing that it made of something else."""

    def make(self, files, folder, **more):
        return sweep(files, folder, loras=files.lora, target=files.target, method="direct", **more)

    def test_a_file_of_somebody(self, files, tmp_path):
        output = tmp_path / "made" / "target" / "style.safetensors"
        output.parent.mkdir(parents=True)
        output.write_text("precious")
        for _ in range(2):  # having failed once does not make it ours
            with pytest.raises(FileError, match="already exists"):
                self.make(files, tmp_path / "made")
            assert output.read_text() == "precious"
        (tmp_path / "made" / "sweep.csv").write_text("mine")
        with pytest.raises(FileError, match="did not make"):
            self.make(files, tmp_path / "made", options=PLAIN.model_copy(update={"overwrite": True}))

    def test_other_settings(self, files, tmp_path):
        self.make(files, tmp_path / "made", rank=2)
        before = made_in(tmp_path / "made")
        with pytest.raises(FileError, match="rank: '2', now '3'"):
            self.make(files, tmp_path / "made", rank=3)
        assert made_in(tmp_path / "made") == before
        report = self.make(files, tmp_path / "made", rank=3, options=PLAIN.model_copy(update={"overwrite": True}))
        assert report.cells[0].figures["rank_out"] == 3
        assert self.make(files, tmp_path / "made", rank=3).kept == {"target/style"}
        allowed = {"force": True, "allow_partial": True}
        assert self.make(files, tmp_path / "made", rank=3, **allowed).kept == {"target/style"}

    def test_what_an_earlier_sweep_made_keeps_its_row(self, files, tmp_path):
        loras = [files.lora, files.folder / "motion.safetensors"]
        self.make(files, tmp_path / "made", rank=2)
        with pytest.raises(FileError, match="rank: '2', now '3'"):  # all of it: nothing is written
            self.make(files, tmp_path / "made", rank=3)
        report = sweep(files, tmp_path / "made", loras=loras, target=files.target, method="direct", rank=3)
        assert [row.state for row in report.cells] == ["failed", "done"]
        assert set(report.errors) == {"target/style"}
        assert self.make(files, tmp_path / "made", rank=2).kept == {"target/style"}

    def test_an_input_or_the_output_has_changed(self, files, tmp_path):
        self.make(files, tmp_path / "made")
        output = tmp_path / "made" / "target" / "style.safetensors"
        os.utime(output)
        assert self.make(files, tmp_path / "made").kept == {"target/style"}
        whole = output.read_bytes()
        output.write_bytes(whole[:-1] + b"!")
        with pytest.raises(FileError, match="not the file that the sweep made"):
            self.make(files, tmp_path / "made")
        output.write_bytes(whole)
        save_file(pico.lora(33, layers=FEW), files.lora)
        with pytest.raises(FileError, match="an input has changed"):
            self.make(files, tmp_path / "made")
        assert output.read_bytes() == whole

    def test_the_scale_that_stands_beside_a_lora_has_changed(self, files, tmp_path):
        beside = files.lora.with_name("adapter_config.json")
        beside.write_text(json.dumps(makers.peft_config(lora_alpha=4)))
        self.make(files, tmp_path / "made")
        beside.write_text(json.dumps(makers.peft_config(lora_alpha=8)))
        with pytest.raises(FileError, match="an input has changed"):
            self.make(files, tmp_path / "made")

    def test_no_input_is_replaced(self, files, tmp_path):
        loras = tmp_path / "target"
        loras.mkdir()
        (loras / "style.safetensors").write_bytes(files.lora.read_bytes())
        report = sweep(
            files, tmp_path, loras=loras / "style.safetensors", target=files.target, method="direct",
            options=PLAIN.model_copy(update={"overwrite": True}),
        )  # fmt: skip
        assert "would replace the input LoRA" in str(report.errors["target/style"])
        assert (loras / "style.safetensors").read_bytes() == files.lora.read_bytes()

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
    def test_a_folder_whose_name_is_no_valid_text(self, files, tmp_path):
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd \xff"))
        shutil.copytree(files.folder, odd)
        moved = pico.Pico(odd, *(odd / path.name for path in (files.source, files.target, files.lora)))
        self.make(moved, odd / "made")
        assert self.make(moved, odd / "made").kept == {"target/style"}

    def test_an_index_that_cannot_be_written_for_a_moment(self, files, tmp_path, monkeypatch):
        """The output was there, its row said that it failed, and the next sweep took it for somebody else's."""
        full = []

        def write_json(path, value):
            if not full and any(row["state"] == "done" for row in value["cells"]):
                full.append(path)
                raise FileError("the disk is full", where=str(path))
            writing.write_json(path, value)

        with monkeypatch.context() as patch:
            patch.setattr(index, "write_json", write_json)
            patch.setattr(index, "_PAUSE", 0.0)
            with pytest.raises(FileError, match="the disk is full"):
                self.make(files, tmp_path / "made")
        assert (tmp_path / "made" / "target" / "style.safetensors").is_file()
        assert self.make(files, tmp_path / "made").kept == {"target/style"}

    def test_an_index_that_is_none(self, files, tmp_path):
        self.make(files, tmp_path / "made")
        (tmp_path / "made" / "sweep.json").write_text('{"cells": [{"name": 3}]}')
        with pytest.raises(FileError, match="cannot be understood"):
            self.make(files, tmp_path / "made")


def test_a_text_that_looks_like_a_formula_is_none_in_the_table(files, tmp_path, monkeypatch):
    lora = files.folder / "=1+1.safetensors"
    lora.write_bytes(files.lora.read_bytes())
    monkeypatch.chdir(files.folder)
    sweep(files, tmp_path / "made", loras="=1+1.safetensors", target=files.target, method="direct")
    with (tmp_path / "made" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["lora"] == "'=1+1.safetensors"
    assert (tmp_path / "made" / line["output"]).exists()
