"""Many LoRAs in one job: each file as if it were alone, each layer of the pair once, no failure but one's own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.engine import devices, room
from loraport.engine.events import Finished, LayerDone, Warned
from loraport.engine.executor import executor_for
from loraport.engine.many.asked import find_loras, output_name
from loraport.engine.many.plan import batches_of
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.room import short_of_room
from loraport.errors import FileError, MismatchError, NumericalError, UsageError

FIRST_BLOCK = {name: shape for name, shape in pico.LAYERS.items() if name.startswith("blocks.0.")}


@pytest.fixture
def files(tmp_path: Path) -> pico.Pico:
    """The pico pair, and a folder of three LoRAs: of another rank, of half the layers, of another dtype."""
    made = pico.write(tmp_path / "pico")
    folder = made.folder / "loras"
    (folder / "old").mkdir(parents=True)
    save_file(pico.lora(9, rank=6), folder / "motion.safetensors")
    save_file(pico.lora(10, layers=FIRST_BLOCK), folder / "half.safetensors")
    save_file({key: t.bfloat16() for key, t in pico.lora(11).items()}, folder / "old" / "half.safetensors")
    return made


def many(files: pico.Pico, output: Path, **settings):
    settings = {"options": RunOptions(cache="off", log="off"), "method": "direct", "recursive": True} | settings
    return loraport.transfer_many(
        settings.pop("loras", files.folder / "loras"),
        source=files.source, target=settings.pop("target", files.target), output=output, **settings,
    )  # fmt: skip


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


THREE = ["half.safetensors", "motion.safetensors", "old/half.safetensors"]


@pytest.mark.parametrize(("method", "executors"), [("casa", ["serial", "process"]), ("matched-gain", ["thread"])])
def test_each_file_is_the_one_that_a_transfer_alone_writes(files, tmp_path, method, executors):
    alone = {}
    for name in THREE:
        path = tmp_path / "alone" / name
        loraport.transfer(
            files.folder / "loras" / name, source=files.source, target=files.target, output=path, method=method,
            options=RunOptions(cache="off", log="off"),
        )  # fmt: skip
        alone[name] = path.read_bytes()
    for executor in executors:
        options = RunOptions(cache="off", log="off", executor=executor, workers=1 if executor == "process" else 2)
        report = many(files, tmp_path / executor, method=method, options=options)
        assert [each.error for each in report.outcomes] == [None] * 3
        assert files_in(tmp_path / executor) == THREE
        assert {name: (tmp_path / executor / name).read_bytes() for name in THREE} == alone


def test_layers_wait_on_the_disk_until_their_lora_is_whole_and_no_longer(files, tmp_path):
    made, counts = tmp_path / "made", {LayerDone: [], Finished: []}

    def listen(event):
        if type(event) in counts:
            counts[type(event)].append(len(list(made.glob("*.partial/*.safetensors"))))

    many(files, made, options=RunOptions(cache="off", log="off", executor="serial"), on_event=listen)
    assert max(counts[LayerDone]) > len(pico.LAYERS)
    assert counts[Finished][-1] == 0


@pytest.mark.parametrize("method", ["casa", "matched-gain"])
def test_every_weight_is_read_once_and_decomposed_once(files, tmp_path, method, monkeypatch):
    from loraport.engine import layer, reading

    read, decomposed = [], []
    reads, decomposes = reading.read_with_sums, layer.thin_svd
    monkeypatch.setattr(
        reading, "read_with_sums", lambda ref, memory, **flags: read.append(ref) or reads(ref, memory, **flags)
    )
    monkeypatch.setattr(
        layer, "thin_svd", lambda weight, name: decomposed.append(name) or decomposes(weight, name=name)
    )
    alike = [files.folder / "loras" / name for name in THREE[1:]]  # of others a few weights are looked at beforehand
    options = RunOptions(cache="off", log="off", executor="serial")
    many(files, tmp_path / "made", method=method, options=options, loras=alike)
    weights = sorted((str(ref.file), ref.key) for ref in read if ref.file in (files.source, files.target))
    assert weights == sorted((str(file), f"{n}.weight") for file in (files.source, files.target) for n in pico.LAYERS)
    assert sorted(decomposed) == (sorted(pico.LAYERS) if method == "casa" else [])


def test_an_output_is_named_after_the_lora_whatever_letters_its_ending_has():
    made = {
        "style.safetensors": "style",
        "Style.SAFETENSORS": "Style",
        "v1.5": "v1.5",
        "zoo:noir": "noir",
        "a/b.pt": "b",
    }
    assert {name: output_name(name) for name in made} == {name: f"{stem}.safetensors" for name, stem in made.items()}


def test_a_lora_that_fails_in_the_middle_ends_alone(files, tmp_path):
    bad = pico.lora(12)
    bad["diffusion_model.blocks.1.ffn.0.lora_A.weight"][0, 0] = float("nan")
    save_file(bad, files.folder / "loras" / "bad.safetensors")
    report = many(files, tmp_path / "made")
    assert files_in(tmp_path / "made") == THREE
    (failed,) = report.failed
    assert failed.lora.endswith("bad.safetensors")
    assert isinstance(failed.error, NumericalError)


def test_a_name_that_is_taken_meanwhile_is_a_failure_of_that_lora_alone(files, tmp_path):
    made, taken = tmp_path / "made", tmp_path / "made" / "motion.safetensors"

    def listen(event):
        if isinstance(event, LayerDone) and not taken.exists():
            taken.write_bytes(b"somebody else's")

    report = many(files, made, options=RunOptions(cache="off"), on_event=listen)
    assert [Path(each.lora).name for each in report.failed] == ["motion.safetensors"]
    assert "a file of this name appeared" in str(report.failed[0].error)
    assert taken.read_bytes() == b"somebody else's"
    assert files_in(made) == sorted([*THREE, *(name.replace(".safetensors", ".run.jsonl") for name in THREE)])
    lines = [json.loads(line) for line in (made / "motion.run.jsonl").read_text().splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["started", "failed"]
    assert "appeared" in lines[-1]["error"]


def test_what_was_finished_stays_and_the_same_call_resumes(files, tmp_path):
    options = RunOptions(cache=str(tmp_path / "cache"), log="off", executor="serial")

    def stop(event):
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        many(files, tmp_path / "made", options=options, on_event=stop)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["half.safetensors"]
    report = many(files, tmp_path / "made", options=options, skip_existing=True)
    assert [each.skipped for each in report.outcomes] == ["the output already exists", None, None]
    assert all(each.report.summary.cached_layers >= len(FIRST_BLOCK) for each in report.outcomes[1:])
    assert many(files, tmp_path / "other").to_json()["skipped"] == 0
    for name in THREE:
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_stopped_before_any_was_finished_nothing_is_left(files, tmp_path):
    def stop(event):
        if isinstance(event, LayerDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        many(files, tmp_path / "made", on_event=stop, options=RunOptions(cache="off"))
    assert not (tmp_path / "made").exists()


def test_a_wrong_pair_is_refused_for_each_before_any_work(files, tmp_path):
    save_file(pico.weights(77), files.target)
    report = many(files, tmp_path / "made", method="casa")
    assert [type(each.error) for each in report.outcomes] == [MismatchError] * 3
    assert not (tmp_path / "made").exists()
    with pytest.raises(UsageError, match="no method"):
        many(files, tmp_path / "made", method="nonsense")


def test_a_folder_that_cannot_be_written_is_said_once(files, tmp_path):
    (tmp_path / "made").write_text("a file")
    with pytest.raises(FileError, match="cannot be written there"):
        many(files, tmp_path / "made" / "inside")


def test_a_layer_that_takes_more_than_it_may_is_said(files, tmp_path):
    told = []
    options = RunOptions(cache="off", log="off", max_memory=1000)
    report = many(files, tmp_path / "made", options=options, on_event=told.append)
    (said,) = [each.message for each in told if isinstance(each, Warned)]
    assert [each.report.warnings for each in report.outcomes] == [(said,)] * 3
    assert "more than the 1.0 kB of --max-memory" in said
    assert files_in(tmp_path / "made") == THREE


def test_a_layer_that_takes_more_of_a_card_than_it_may_is_said(files, monkeypatch):
    """There is none here: what a plan and the slots say of one."""
    monkeypatch.setattr(devices, "pick_devices", lambda wanted: ("cuda:0",))
    monkeypatch.setattr(devices, "usable_bytes", lambda device: 10**9)
    plan = make_plan(Recipe(lora=str(files.lora), source=str(files.source), target=str(files.target)))
    largest = max(job.bytes_on("cuda:0") for job in plan.jobs)
    for most, count in ((2 * largest, 0), (2 * largest - 2, 1)):  # of so little, half is for tensors
        options = RunOptions(device="cuda:0", max_memory=most)
        said = list(short_of_room([plan], None, options, executor_for(options), twice=False))
        assert len(said) == count
        assert all("that --max-memory leaves there for tensors" in one for one in said)


def test_a_layer_that_takes_more_memory_than_is_free_is_said(files, monkeypatch):
    plan = make_plan(Recipe(lora=str(files.lora), source=str(files.source), target=str(files.target)))
    largest = max(job.bytes_on("cpu") for job in plan.jobs)
    options = RunOptions(device="cpu")
    for free, count in ((largest, 0), (largest - 1, 1)):
        monkeypatch.setattr(room, "free_memory", lambda free=free: free)
        said = list(short_of_room([plan], None, options, executor_for(options), twice=False))
        assert len(said) == count
        assert all("of memory is free: if the system ends" in one for one in said)


def test_what_is_said_of_one_lora_has_its_name(files, tmp_path):
    """Before the work, of those with a layer that the target lacks, unless all have it; and of what it found."""
    folder, target = files.folder / "loras", load_file(files.target)
    del target["blocks.0.ffn.0.weight"], target["blocks.1.ffn.0.weight"]
    save_file(target, files.target)
    zeros = {key: torch.zeros_like(tensor) for key, tensor in load_file(folder / "half.safetensors").items()}
    save_file(zeros, folder / "half.safetensors")
    told = []
    many(files, tmp_path / "made", allow_partial=True, on_event=told.append)
    of_all, *said = [each.message for each in told if isinstance(each, Warned)]
    assert of_all.startswith("blocks.0.ffn.0 is in")
    starts = {"motion": "blocks.1.ffn.0 is in", "old/half": "blocks.1.ffn.0 is in", "half": "every update is zero"}
    assert len(said) == len(starts)
    for name, start in starts.items():
        assert any(text.startswith(f"{folder / name}.safetensors: {start}") for text in said)


def test_existing_outputs_are_kept_or_replaced(files, tmp_path):
    made = tmp_path / "made"
    many(files, made)
    (made / "half.safetensors").write_bytes(b"another")
    report = many(files, made)
    assert all("already exists" in str(each.error) for each in report.outcomes)
    assert (made / "half.safetensors").read_bytes() == b"another"
    assert not many(files, made, options=RunOptions(cache="off", log="off", overwrite=True)).failed
    assert (made / "half.safetensors").read_bytes() != b"another"
    with pytest.raises(UsageError, match="either skipped or replaced"):
        many(files, made, skip_existing=True, options=RunOptions(overwrite=True))


def test_a_layer_takes_what_is_finished_of_the_other_loras_as_well(files):
    named = {"lora": str(files.lora), "source": str(files.source), "target": str(files.target)}
    for dtype in ("float32", "bfloat16"):
        plan = make_plan(Recipe.build({**named, "method": "matched-gain", "dtype": dtype}))
        alone, three = (batches_of(dict.fromkeys(range(count), plan)) for count in (1, 3))
        more = sum(batch.peak_bytes for batch in three) - sum(batch.peak_bytes for batch in alone)
        assert more == 2 * plan.output_bytes


def test_each_output_has_its_log(files, tmp_path):
    many(files, tmp_path / "made", options=RunOptions(cache="off"))
    lines = [json.loads(line) for line in (tmp_path / "made" / "half.run.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", *["layer"] * len(FIRST_BLOCK), "finished"]
    with pytest.raises(UsageError, match="one LoRA"):
        many(files, tmp_path / "made", options=RunOptions(log=str(tmp_path / "log.jsonl")))


def test_no_lora_is_replaced_by_an_output(files):
    folder = files.folder / "loras"
    before = (folder / "motion.safetensors").read_bytes()
    report = many(files, folder, options=RunOptions(cache="off", log="off", overwrite=True))
    assert all("would replace the input LoRA" in str(each.error) for each in report.outcomes)
    assert (folder / "motion.safetensors").read_bytes() == before


def test_progress_reaches_its_end(files, tmp_path):
    events = []
    many(files, tmp_path / "made", on_event=events.append)
    layers = [event for event in events if isinstance(event, LayerDone)]
    assert [event.finished for event in layers] == list(range(1, 2 * len(pico.LAYERS) + len(FIRST_BLOCK) + 1))
    assert layers[-1].done == pytest.approx(layers[-1].total)


class TestWhichFiles:
    """Listing alone, without any model."""

    def test_folders_inside_are_looked_into_when_asked(self, files, tmp_path):
        loras, made = str(files.folder / "loras"), tmp_path / "made"
        (files.folder / "loras" / "motion.png").write_bytes(b"a picture")
        (files.folder / "loras" / ".motion.safetensors").write_bytes(b"hidden")
        flat = find_loras([loras], made)
        assert [each.output.relative_to(made).as_posix() for each in flat] == THREE[:2]
        deep = find_loras([loras, "zoo:outline"], made, recursive=True)
        assert [each.output.relative_to(made).as_posix() for each in deep] == [*THREE, "outline.safetensors"]
        with pytest.raises(UsageError, match="--recursive"):
            find_loras([str(files.folder.parent)], made)

    def test_a_folder_as_peft_saves_it_is_one_lora(self, files, tmp_path):
        saved = files.folder / "loras" / "old" / "peft"
        saved.mkdir()
        for name in ("adapter_model.safetensors", "more.safetensors"):
            (saved / name).write_bytes(files.lora.read_bytes())
        assert [each.lora for each in find_loras([str(saved)], tmp_path)] == [str(saved)]
        deep = find_loras([str(files.folder / "loras")], tmp_path, recursive=True)
        assert [(each.lora, each.output) for each in deep][-1] == (str(saved), tmp_path / "old" / "peft.safetensors")

    def test_what_was_made_before_is_not_listed_and_a_circle_ends(self, files):
        loras = files.folder / "loras"
        (loras / "made").mkdir()
        (loras / "made" / "motion.safetensors").write_bytes(b"made before")
        (loras / "circle").symlink_to(loras, target_is_directory=True)
        found = find_loras([str(loras)], loras / "made", recursive=True)
        assert [each.output.relative_to(loras / "made").as_posix() for each in found] == THREE

    def test_names_that_collide_are_refused(self, files, tmp_path):
        loras = files.folder / "loras"
        torch.save(load_file(loras / "motion.safetensors"), loras / "Motion.pt")
        with pytest.raises(UsageError, match=r"Motion\.pt"):
            find_loras([str(loras)], tmp_path)
        with pytest.raises(UsageError, match="same output name"):
            find_loras([str(loras / "half.safetensors"), str(loras / "old" / "half.safetensors")], tmp_path)
