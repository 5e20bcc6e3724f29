"""`loraport cache`."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pico
from loraport.cli.main import app
from loraport.store.index import entry_key
from loraport.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "cache größe", reserve_bytes=0)
    for number in range(3):
        store.put("basis", entry_key({"n": number}), {"U": torch.full((8, 8), float(number))})
    store.put("result", entry_key({"n": 9}), {"A": torch.ones(2, 2)})
    return store


def cache(store: Store, *words: str):
    return CliRunner().invoke(app, ["cache", *words, "--cache", str(store.root)])


def test_ls(store: Store) -> None:
    page = cache(store, "ls").stdout
    assert "4 entries" in page
    assert "decomposed weights" in page
    assert entry_key({"n": 9})[:16] in cache(store, "ls", "-v").stdout
    facts = json.loads(cache(store, "ls", "--json").stdout)
    assert facts["entries"] == 4
    assert facts["kinds"]["basis"]["entries"] == 3


def test_ls_of_the_default_place(store: Store) -> None:
    done = CliRunner(env={"LORAPORT_CACHE": str(store.root)}).invoke(app, ["cache", "ls", "--json"])
    assert json.loads(done.stdout)["root"] == str(store.root)


def test_a_cache_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["cache", "ls", "--cache", str(tmp_path / "none")])
    assert done.exit_code == 0
    assert "no entries" in done.stdout


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = CliRunner().invoke(app, ["cache", "ls", "--cache", str(tmp_path / "file")])
    assert done.exit_code == 5
    assert "not a folder" in done.stderr


def test_gc_and_clear(store: Store) -> None:
    total = sum(entry.bytes for entry in store.entries())
    facts = json.loads(cache(store, "gc", "--max-size", str(total - 1), "--json").stdout)
    assert facts["deleted"] == 1
    assert "no entries" in cache(store, "gc").stdout
    assert "3 entries dropped" in cache(store, "clear").stdout
    assert store.entries() == []


def test_verify(store: Store) -> None:
    assert "all sound" in cache(store, "verify").stdout
    path = store.entries()[0].path
    path.write_bytes(path.read_bytes()[:-1])
    done = cache(store, "verify")
    assert done.exit_code == 5
    assert path.name in done.stderr
    assert path.exists()
    done = cache(store, "verify", "--remove")
    assert done.exit_code == 0
    assert not path.exists()


def test_warm_does_the_work_and_writes_nothing(files: pico.Pico, tmp_path: Path) -> None:
    words = [
        str(files.lora),
        "--source",
        str(files.source),
        "--target",
        str(files.target),
        "--cache",
        str(tmp_path / "c"),
    ]
    before = sorted(files.folder.iterdir())
    done = CliRunner().invoke(app, ["cache", "warm", *words])
    assert done.exit_code == 0, done.output
    assert sorted(files.folder.iterdir()) == before
    output = str(files.folder / "out.safetensors")
    assert "20 of 20 layers from an earlier run" in CliRunner().invoke(app, ["transfer", *words, "-o", output]).stdout


def test_warm_refuses_like_a_transfer(files: pico.Pico) -> None:
    done = CliRunner().invoke(app, ["cache", "warm", str(files.lora), "--target", str(files.target)])
    assert done.exit_code == 2
    assert "source is not given" in done.stderr


def test_warming_with_a_method_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    files = pico.write(tmp_path / "pico")
    words = ["warm", files.lora, "-s", files.source, "-t", files.target]
    store = Store(tmp_path / "cache")
    done = cache(store, *map(str, words), "-m", "direct")
    assert done.exit_code == 0, done.output
    assert "decomposes nothing" in done.stderr
    assert "decomposes nothing" not in cache(store, *map(str, words)).stderr
