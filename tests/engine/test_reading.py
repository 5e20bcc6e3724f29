"""Inputs are read once, hashed while they are read, and a change during a run is noticed before anything is kept."""

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico
from loraport.containers import tensors
from loraport.containers.references import open_tensors
from loraport.engine import reading
from loraport.engine.events import LayerDone
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.run import compute, run
from loraport.errors import FileError, NumericalError, UnmatchedKeysError
from loraport.store.digests import DigestMemo


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    made = pico.write(tmp_path / "pico")
    for path in (made.source, made.target, made.lora):  # made long ago, as far as the memory of digests can tell
        os.utime(path, ns=(1, 1))
    return made


def _recipe(files: pico.Pico, **settings) -> Recipe:
    settings = {"target": str(files.target), "method": "casa"} | settings
    return Recipe.build({"lora": str(files.lora), "source": str(files.source), **settings})


@pytest.mark.parametrize("method", ["casa", "matched-gain", "prolora"])
@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_each_weight_is_read_once(files, tmp_path, monkeypatch, method, executor):
    seen: Counter[tuple[str, str]] = Counter()
    for name in ("sums_of", "read_with_sums"):
        real = getattr(reading, name)

        def spied(ref, *more, real=real, **flags):
            seen[ref.file.name, ref.key] += 1
            return real(ref, *more, **flags)

        monkeypatch.setattr(reading, name, spied)
    options = RunOptions(executor=executor, cache=str(tmp_path / "cache"), log="off", overwrite=True)
    run(make_plan(_recipe(files, method=method)), tmp_path / "out.safetensors", options)
    reads = {key: count for key, count in seen.items() if key[0] != files.lora.name}
    layers = {f"{name}.weight" for name in pico.LAYERS}
    assert {key for _, key in reads} == layers
    assert set(reads.values()) == {1}


def _rewrite(path: Path, other: Path) -> None:
    """In place, with the old modification time put back."""
    stat = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _rename_over(path: Path, other: Path) -> None:
    os.replace(other, path)


def _remove(path: Path, other: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [_rewrite, _rename_over, _remove])
@pytest.mark.parametrize("role", ["source", "target", "lora", "distill"])
def test_an_input_that_changes_during_a_run(files, tmp_path, change, role):
    """Nothing is written, and nothing is kept that a later run on the right files would take for its own."""
    distill = files.folder / "fast.safetensors"
    save_file(pico.lora(5, rank=6), distill)
    os.utime(distill, ns=(1, 1))
    settings = {"layers": r"^blocks\.0\."}
    settings |= {"target": None, "target_lora": str(distill)} if role == "distill" else {}
    path = distill if role == "distill" else getattr(files, role)
    spare, other = tmp_path / "spare.safetensors", tmp_path / "other.safetensors"
    shutil.copy2(path, spare)
    save_file({key: 0.5 * tensor for key, tensor in load_file(path).items()}, other)
    options = RunOptions(executor="serial", cache=str(tmp_path / "cache"), log="off", overwrite=True)
    plan = make_plan(_recipe(files, **settings))

    def on_event(event: object) -> None:
        if isinstance(event, LayerDone) and event.finished == 5:
            change(path, other)

    output = tmp_path / "out.safetensors"
    with pytest.raises(FileError, match=r"changed|cannot be read"):
        run(plan, output, options, on_event)
    assert not output.exists()

    os.replace(spare, path)
    os.utime(path, ns=(1, 1))
    run(make_plan(_recipe(files, **settings)), output, options)
    fresh = RunOptions(executor="serial", cache="off", log="off")
    run(make_plan(_recipe(files, **settings)), tmp_path / "fresh.safetensors", fresh)
    assert output.read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()


def test_an_input_that_changes_between_plan_and_run(files, tmp_path):
    """Also where everything would come from the cache and no file is read."""
    options = RunOptions(cache=str(tmp_path / "cache"), log="off", overwrite=True)
    output = tmp_path / "out.safetensors"
    run(make_plan(_recipe(files, method="direct")), output, options)
    output.unlink()
    plan = make_plan(_recipe(files, method="direct"))
    save_file(pico.weights(9), files.source)
    with pytest.raises(FileError, match="changed"):
        run(plan, output, options)
    assert not output.exists()


def _poison(cache: Path, digest: str) -> int:
    """Put another digest in the place of every remembered one of a weight, as if the file had been written unseen."""
    changed = 0
    for page in (cache / "digests").rglob("*.json"):
        document = json.loads(page.read_text())
        for key in document["digests"]:
            if "target" in document["identity"].split()[0] and " xxh3 " not in key:
                document["digests"][key] = digest
                changed += 1
        page.write_text(json.dumps(document))
    return changed


@pytest.mark.parametrize("method", ["casa", "matched-gain"])
def test_a_remembered_digest_must_agree_with_what_is_read(files, tmp_path, method):
    time.sleep(2 * reading._CLOCK_NS / 1e9)  # what is known of files that are younger is not kept
    cache, output = tmp_path / "cache", tmp_path / "out.safetensors"
    options = RunOptions(executor="serial", cache=str(cache), log="off", overwrite=True)
    run(make_plan(_recipe(files, method=method)), output, options)
    right = output.read_bytes()
    output.unlink()

    def unsure() -> None:
        assert _poison(cache, "ab" * 32) == len(pico.LAYERS)
        for kind in ("basis", "prepared", "result"):
            shutil.rmtree(cache / kind, ignore_errors=True)

    unsure()
    with pytest.raises(FileError, match="changed"):
        run(make_plan(_recipe(files, method=method)), output, options)
    assert not output.exists()
    run(make_plan(_recipe(files, method=method)), output, options)  # again, as the message says
    assert output.read_bytes() == right
    output.unlink()
    unsure()
    verified = RunOptions(executor="serial", cache=str(cache), log="off", overwrite=True, verify_inputs=True)
    run(make_plan(_recipe(files, method=method)), output, verified)
    assert output.read_bytes() == right
    run(make_plan(_recipe(files, method=method)), output, options)  # what was verified is remembered
    assert output.read_bytes() == right


def test_what_is_read_again_is_held_against_its_checksum(files, tmp_path, monkeypatch):
    """Nothing is digested a second time, and a change that the times of the file do not show is still seen."""
    time.sleep(2 * reading._CLOCK_NS / 1e9)
    cache = tmp_path / "cache"
    ref = open_tensors(files.target).groups[()]["blocks.0.ffn.0.weight"]
    first = reading.InputReader(DigestMemo(cache))
    known = first.digest(ref, hold=True)
    weight = first.read(ref)
    first.memo.flush()
    asked, real = [], reading.read_with_sums

    def spied(ref, memory, *, digest=True):
        asked.append(digest)
        return real(ref, memory, digest=digest)

    monkeypatch.setattr(reading, "read_with_sums", spied)
    again = reading.InputReader(DigestMemo(cache))
    assert again.digest(ref, hold=True) == known
    assert torch.equal(again.read(ref), weight)
    assert asked == [False]

    state = again.page(ref)
    monkeypatch.setattr(reading.InputReader, "page", lambda self, ref: state)
    save_file({key: 0.5 * tensor for key, tensor in load_file(files.target).items()}, files.target)
    with pytest.raises(FileError, match="content of a tensor changed"):
        reading.InputReader(DigestMemo(cache)).read(ref)
    assert asked == [False, False, True]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_a_difference_is_that_of_the_two_weights(tmp_path, stored):
    """As both are read, in strips that do not divide it evenly, or of what has been read; what is not finite is said of
    the weight that it is in."""
    count = 3 * tensors._STREAMED // 64 + 1
    numbers = {name: torch.randn(count, 64, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("abc")}
    numbers["c"][-1, 5] = torch.nan
    save_file({name: tensor.to(stored) for name, tensor in numbers.items()}, tmp_path / "all.safetensors")
    refs = open_tensors(tmp_path / "all.safetensors").groups[()]
    reader = reading.InputReader(DigestMemo(None))
    assert reader._streamed(refs["a"], refs["b"]) is None  # nothing is known of them yet
    found = reader.difference(refs["a"], refs["b"])
    wanted = reader.read(refs["a"]) - reader.read(refs["b"])
    assert torch.equal(found, wanted)
    reader.digest(refs["c"], hold=True)
    reader.drop([refs["c"]])
    assert torch.equal(reader._streamed(refs["a"], refs["b"]), wanted)
    for rows in (((3, 40),), ((100, 130), (7, 14))):  # fused with others, in two orders
        part = {name: replace(refs[name], rows=rows, shape=(37, 64)) for name in "ab"}
        for ref in part.values():
            reader.digest(ref, hold=True)
            reader.drop([ref])
        rows_wanted = torch.cat([wanted[start:end] for start, end in rows])
        assert torch.equal(reader._streamed(part["a"], part["b"]), rows_wanted)
    for one, other in (("a", "c"), ("c", "a")):
        with pytest.raises(NumericalError, match=r"^c holds NaN"):
            reader.difference(refs[one], refs[other])


def test_a_further_lora_reads_only_what_no_entry_holds(files, tmp_path, monkeypatch):
    """Of the square layers neither weight, not even to see whether the models are related, unless an entry is gone."""
    time.sleep(2 * reading._CLOCK_NS / 1e9)
    cache, read, real, between = tmp_path / "cache", set(), reading.read_with_sums, reading.subtract

    def spied(ref, memory, **flags):
        read.add((ref.file, ref.key))
        return real(ref, memory, **flags)

    def spied_between(one, other, out):
        read.update((ref.file, ref.key) for ref in (one, other))
        return between(one, other, out)

    monkeypatch.setattr(reading, "read_with_sums", spied)
    monkeypatch.setattr(reading, "subtract", spied_between)
    options = RunOptions(executor="serial", cache=str(cache), log="off", overwrite=True)
    run(make_plan(_recipe(files)), tmp_path / "first.safetensors", options)
    wide = {name for name, (m, n) in pico.LAYERS.items() if m != n}
    weights = {(file, f"{name}.weight") for name in wide for file in (files.source, files.target)}

    def further() -> set[tuple[Path, str]]:
        shutil.rmtree(cache / "result")
        read.clear()
        run(make_plan(_recipe(files)), tmp_path / "again.safetensors", options)
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "first.safetensors").read_bytes()
        return {(file, key) for file, key in read if file != files.lora}

    assert further() == weights
    for entry in (cache / "prepared").rglob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:-1])
    assert further() > weights


def test_a_device_without_room_is_said(files, tmp_path, monkeypatch):
    """The slot calls itself cpu:0 so as not to be the CPU that a layer is handed to; its third layer has no room."""
    from loraport.engine import devices
    from loraport.methods import registry

    method = registry.get("casa")
    real, calls = type(method).transfer, []

    def transfer(self, inputs, params):
        calls.append(inputs.name)
        if len(calls) in (3, 4):  # nor when it is tried again
            raise torch.OutOfMemoryError("no room")
        return real(self, inputs, params)

    monkeypatch.setattr(type(method), "transfer", transfer)
    monkeypatch.setattr(devices, "pick_devices", lambda wanted: ("cpu:0",))
    options = RunOptions(executor="serial", cache="off", log="off")
    report = run(make_plan(_recipe(files)), tmp_path / "out.safetensors", options)
    (said,) = [text for text in report.warnings if "ran out of memory" in text]
    assert said.startswith(calls[2])
    devices_used = {layer.name: layer.device for layer in report.layers}
    assert devices_used[calls[2]] == "cpu"
    assert calls.count(calls[2]) == 3
    monkeypatch.undo()
    run(make_plan(_recipe(files)), tmp_path / "plain.safetensors", options)
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_strength_and_scale_reach_every_update(files, tmp_path):
    """Half the LoRA under another name: by --strength, by --scale, and by hand."""
    options = RunOptions(cache="off", log="off")
    half = files.folder / "half.safetensors"
    save_file({key: tensor * (0.5 if "lora_B" in key else 1) for key, tensor in load_file(files.lora).items()}, half)
    made = {}
    for name, settings in {"hand": {"lora": str(half)}, "strength": {"strength": 0.5}, "scale": {"scale": 0.5}}.items():
        plan = make_plan(Recipe.build(_recipe(files, rank="full").model_dump() | settings))
        made[name] = {layer: update.dense() for layer, update in compute(plan, options).items()}
    for name in ("strength", "scale"):
        for layer, matrix in made["hand"].items():
            assert float((made[name][layer] - matrix).norm() / matrix.norm()) < 1e-5


def test_the_flags_of_the_lora_reach_the_distillation_lora(files, tmp_path):
    """Parts that no layer of the model has are left out where that was allowed, and named."""
    plain = pico.lora(5, rank=6)
    strange = {key.replace("blocks.0.self_attn.q", "blocks.0.cross_attn.k_img"): t for key, t in pico.lora(6).items()}
    extra = {key: tensor for key, tensor in strange.items() if "k_img" in key}
    fitting, more = files.folder / "fitting.safetensors", files.folder / "more.safetensors"
    save_file(plain, fitting)
    save_file(plain | extra, more)
    options = RunOptions(cache="off", log="off")

    def made(lora: Path, name: str, **settings) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
        recipe = _recipe(files, target=None, target_lora=str(lora), **settings)
        report = run(make_plan(recipe), tmp_path / name, options)
        return load_file(tmp_path / name), report.warnings

    expected, _ = made(fitting, "expected.safetensors")
    with pytest.raises(UnmatchedKeysError, match="allow-partial"):
        made(more, "refused.safetensors")
    for settings in ({"allow_partial": True}, {"drop": "k_img"}, {"allow_partial": True, "adapter": "style"}):
        got, warnings = made(more, f"{len(settings)}-{next(iter(settings))}.safetensors", **settings)
        assert all(torch.equal(got[key], tensor) for key, tensor in expected.items())
        assert any("k_img" in text and "distillation" in text for text in warnings)
