"""What Windows refuses: by its rules about files, kept here elsewhere, and by its names, paths and numbers."""

import mmap
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PureWindowsPath

import pytest
import torch
from safetensors.torch import load_file

import loraport
import pico
import windows_rules
from loraport import files, windows
from loraport.adapters.added_lora import AddedLora
from loraport.adapters.consumers import filled
from loraport.cli import guard
from loraport.cli.recipe_file import read_recipe
from loraport.containers.access import status
from loraport.containers.tensors import open_tensors
from loraport.engine.executor import Limits
from loraport.engine.executors.process import LayerExecutor
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.errors import FileError
from loraport.partial import remove_abandoned
from loraport.store import index
from loraport.store.store import Store
from loraport.writable import check_output

by_the_rules = pytest.mark.skipif(
    os.name != "nt" and not Path("/proc/self/fd").exists(), reason="what is open is read from /proc"
)
WRITER = """
import sys, time
from pathlib import Path
import loraport.partial
loraport.partial.fcntl = None
from loraport.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half of it")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    windows_rules.keep(monkeypatch)


@pytest.fixture
def named_as_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOWS", True)


@by_the_rules
def test_the_rules_are_kept(tmp_path: Path, rules) -> None:
    path, other = tmp_path / "open", tmp_path / "other"
    path.write_bytes(b"content")
    other.write_bytes(b"content")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for forbidden in (path.unlink, lambda: os.replace(path, other), lambda: os.replace(other, path)):
            with pytest.raises(PermissionError):
                forbidden()
    with pytest.raises(PermissionError):
        path.unlink()
    mapped.close()
    path.unlink()
    with pytest.raises(PermissionError):
        os.open(tmp_path, os.O_RDONLY)


@by_the_rules
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_transfer_holds_nothing_open_that_it_replaces(tmp_path: Path, ending: str, rules) -> None:
    made = pico.write(tmp_path / "pico")
    target = made.folder / f"target.{ending}"
    if ending == "pt":
        torch.save({"generator": load_file(made.target)}, target)
    options = RunOptions(cache=str(tmp_path / "cache"), overwrite=True, executor="thread", workers=2)

    def carry() -> bytes:
        output = tmp_path / "out.safetensors"
        loraport.transfer(made.lora, source=made.source, target=target, output=output, options=options)
        return output.read_bytes()

    assert carry() == carry()
    assert list(tmp_path.rglob("*.partial")) == []
    for path in (made.source, target, made.lora):
        os.unlink(path)  # nothing is mapped, or kept open
    assert index.clear(tmp_path / "cache") != []


@by_the_rules
def test_an_output_that_is_in_use_is_named_and_stays(tmp_path: Path, rules) -> None:
    path, other = tmp_path / "high.bin", tmp_path / "low.bin"
    files.write_bytes(path, b"old")
    files.write_bytes(other, b"old too")

    def write() -> None:
        with files.atomic_paths([path, other]) as temporaries:
            for temporary in temporaries.values():
                temporary.write_bytes(b"new")

    with other.open("rb"):
        with pytest.raises(FileError, match="could not write") as caught:
            write()
        assert caught.value.where == str(other)
        assert "close the program" in caught.value.fix
        assert (path.read_bytes(), other.read_bytes()) == (b"old", b"old too")
        assert sorted(tmp_path.iterdir()) == [path, other]
    write()
    assert (path.read_bytes(), other.read_bytes()) == (b"new", b"new")
    assert sorted(tmp_path.iterdir()) == [path, other]


@by_the_rules
def test_a_file_that_is_looked_at_for_a_moment_is_waited_for(tmp_path: Path, rules, monkeypatch) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    scanner = path.open("rb")
    monkeypatch.setattr(windows.time, "sleep", lambda seconds: scanner.close())
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


@by_the_rules
def test_leftovers_go_once_nobody_holds_them(tmp_path: Path, rules) -> None:
    path = index.entry_path(tmp_path, "basis", "ab" * 32)
    path.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        (left,) = path.parent.iterdir()
        files.write_bytes(path, b"another run writes the same name meanwhile")
        assert remove_abandoned(path) == index.sweep(tmp_path) == 0
        assert (left / "data").read_bytes() == b"half of it"
        process.kill()
    assert index.sweep(tmp_path) == 1
    assert list(path.parent.iterdir()) == [path]


@by_the_rules
def test_an_entry_that_another_process_reads_is_kept(tmp_path: Path, rules) -> None:
    store, key, tensors = Store(tmp_path, reserve_bytes=0), "ab" * 32, {"x": torch.ones(3)}
    assert store.put("basis", key, tensors)
    with store.path("basis", key).open("rb"):
        assert store.put("basis", key, tensors)
        assert index.clear(store.root) == []
    assert store.take_problems() == []
    assert len(index.clear(store.root)) == 1


@pytest.mark.parametrize(
    "name",
    [r"C:\loras\con.safetensors", r"out\Aux\x.safetensors", "nul", "COM1.run.jsonl", "style:fast.safetensors",
     r"C:\what?.safetensors", r"D:\loras \x.safetensors", r"\\server\share\a|b", "x.", "tab\t.bin",
     "x" * 256],
)  # fmt: skip
def test_names_that_windows_does_not_have(name: str, named_as_windows) -> None:
    assert windows.refused_name(PureWindowsPath(name)) is not None


@pytest.mark.parametrize(
    "name",
    [r"C:\loras\style.safetensors", r"..\.\out.safetensors", r"\\server\share\x.safetensors", "console.bin", ".hidden",
     r"\\?\C:\long\x.safetensors", "com10.bin", "größe, ein Stil (v2).safetensors", "C:/loras/x.safetensors",
     "x" * 255],
)  # fmt: skip
def test_names_that_windows_has(name: str, named_as_windows) -> None:
    assert windows.refused_name(PureWindowsPath(name)) is None


def test_a_name_is_refused_before_the_work_and_only_there(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "style:fast.safetensors"
    monkeypatch.setattr(windows, "WINDOWS", False)
    check_output(path, overwrite=False)
    monkeypatch.setattr(windows, "WINDOWS", True)
    with pytest.raises(FileError, match="on Windows") as caught:
        check_output(path, overwrite=False)
    assert "':'" in caught.value.values


def test_paths_that_are_too_long_are_called_that(tmp_path: Path, named_as_windows) -> None:
    deep = tmp_path.joinpath(*["d" * 50] * 5, "x.safetensors")
    with pytest.raises(FileError, match="cannot be read") as caught:
        status(deep)
    assert "long paths" in caught.value.fix
    with pytest.raises(FileError) as caught:
        status(tmp_path / "x.safetensors")
    assert "long paths" not in caught.value.fix


def test_a_drive_is_no_file_with_a_strength(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "C").mkdir()  # with which `C:\few.pt` would be a LoRA and what stands behind it
    assert AddedLora.parse(r"C:\few.pt").file == r"C:\few.pt"
    added = AddedLora.parse(r"C:\loras\few.pt:0.5:expert=high")
    assert (added.file, added.strength, added.expert) == (r"C:\loras\few.pt", 0.5, "high")
    assert AddedLora.parse("C:/few.pt:-1").file == "C:/few.pt"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("source: 'C:\\base.safetensors'\ntarget_lora: ['C:\\few.pt:0.5']\n", encoding="utf-8")
    found = read_recipe(recipe, (Recipe,))
    assert found["source"] == "C:\\base.safetensors"
    assert found["target_lora"] == ["C:\\few.pt:0.5"]


def test_a_page_file_that_is_full_is_no_damaged_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2)}, path)
    said = "could not create a map on file <model.pt>; error code: <1455>"  # of torch's MapAllocator

    def load(*args: object, **settings: object) -> None:
        raise RuntimeError(said)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load)
        with pytest.raises(FileError, match="page file") as caught:
            open_tensors(path)
    assert "damaged" not in str(caught.value)
    assert list(open_tensors(path).groups[()]) == ["w"]
    error = OSError("The paging file is too small for this operation to complete")
    error.winerror = 1455  # type: ignore[attr-defined]  # as Windows gives it
    for raised, says in (
        (error, "page file"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), "out of memory"),
    ):
        assert says in guard._refusal(raised).what


def test_a_path_to_type_has_slashes_that_nobody_doubles() -> None:
    path = PureWindowsPath(r"C:\loras\a b.safetensors")
    assert filled("add {path}, called {name}", path) == 'add "C:/loras/a b.safetensors", called a b.safetensors'


def test_no_more_worker_processes_than_windows_has(monkeypatch) -> None:
    monkeypatch.setattr(windows, "WINDOWS", False)
    assert len(LayerExecutor(Limits(workers=100)).slots()) == 100
    monkeypatch.setattr(windows, "WINDOWS", True)
    count = len(LayerExecutor(Limits(workers=100)).slots())
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="max_workers"):
        ProcessPoolExecutor(count + 1)
    ProcessPoolExecutor(count).shutdown()
