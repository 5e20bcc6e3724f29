"""Inputs that are replaced while a run reads them, in a process that is held meanwhile."""

import json
import os
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file


def _rewritten(path, other) -> None:
    """In place, and with the old time of modification, as a tool that keeps times would."""
    stat = path.stat()
    shutil.copyfile(other, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _renamed_over(path, other) -> None:
    os.replace(other, path)


@pytest.mark.parametrize("change", [_rewritten, _renamed_over])
@pytest.mark.parametrize("role", ["source", "target", "lora"])
def test_an_input_changes_while_it_is_read(case, undisturbed, tmp_path, role: str, change) -> None:
    path = getattr(case.files, role)
    other, kept = tmp_path / "other.safetensors", tmp_path / "kept.safetensors"
    save_file({key: 0.5 * tensor for key, tensor in load_file(path).items()}, other)
    shutil.copy2(path, kept)
    process = case.start("--executor", "serial")
    case.wait_for_layers(3)
    process.send(signal.SIGSTOP)
    if case.layers_done() == 20:
        process.send(signal.SIGCONT)
        process.finish()
        pytest.skip("the run was over before it could be held")
    change(path, other)
    process.send(signal.SIGCONT)
    done = process.finish()
    assert done.code == 5, done.stderr
    assert done.errors == 1
    assert "changed" in done.stderr
    assert path.name in done.stderr
    assert not case.output.exists()
    os.replace(kept, path)  # the right file again: the cache must not remember anything of the other one
    assert case.run().code == 0
    assert case.output.read_bytes() == undisturbed.output


def test_a_shard_changes_while_it_is_read(case, undisturbed, tmp_path) -> None:
    """A folder with an index: the file that no sampled layer lies in counts as much as any other."""
    tensors = load_file(case.files.source)
    names = sorted(tensors)
    folder = case.files.folder / "sharded"
    folder.mkdir()
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    places = {key: file for file, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    last = folder / "model-00002-of-00002.safetensors"
    other = tmp_path / "other.safetensors"
    save_file({key: 0.5 * tensor for key, tensor in load_file(last).items()}, other)
    process = case.start("--executor", "serial", "--source", folder)
    case.wait_for_layers(3)
    process.send(signal.SIGSTOP)
    os.replace(other, last)
    process.send(signal.SIGCONT)
    done = process.finish()
    assert done.code == 5, done.stderr
    assert not case.output.exists()
