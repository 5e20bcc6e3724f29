"""Runs that end badly: killed, interrupted, out of disk, with a damaged cache. The next run makes it good."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file


def test_two_runs_give_the_same_bytes(case, undisturbed) -> None:
    expected = undisturbed.output
    assert case.run().code == 0
    assert case.output.read_bytes() == expected
    assert case.run("--overwrite").code == 0  # everything from the cache
    assert case.output.read_bytes() == expected
    assert case.run("--overwrite", "--cache", "off", "--executor", "serial").code == 0
    assert case.output.read_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 5, 12, 19, 20])
def test_killed_and_run_again_gives_the_same_bytes(case, undisturbed, after: int) -> None:
    expected = undisturbed.output
    chance = random.Random(after)
    for _ in range(2):
        process = case.start("--overwrite", "--executor", "serial")
        case.wait_for_layers(after)
        time.sleep(chance.uniform(0, 0.01))
        process.send(signal.SIGKILL)
        done = process.finish()
        assert done.killed == signal.SIGKILL or done.code == 0
        assert not case.output.exists() or case.output.read_bytes() == expected
    assert case.run("--overwrite").code == 0
    assert case.output.read_bytes() == expected


def test_killed_at_random_moments(case, undisturbed) -> None:
    expected = undisturbed.output
    chance = random.Random(7)
    for _ in range(6):
        process = case.start("--overwrite")
        time.sleep(chance.uniform(0, 0.4))
        process.send(signal.SIGKILL)
        process.finish()
        assert not case.output.exists() or case.output.read_bytes() == expected
    assert case.run("--overwrite").code == 0
    assert case.output.read_bytes() == expected


def test_ctrl_c_and_run_again(case, undisturbed) -> None:
    expected = undisturbed.output
    process = case.start("--executor", "serial")
    case.wait_for_layers(3)
    process.send(signal.SIGINT)
    done = process.finish()
    assert done.code == 130, done.stderr
    assert "run the same command again to resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not case.output.exists()
    again = case.run()
    assert again.code == 0, again.stderr
    assert "from an earlier run" in again.stdout
    assert case.output.read_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_ctrl_c_in_the_middle_of_workers(case, executor: str) -> None:
    process = case.start("--executor", executor)
    log = case.output.with_name("out.run.jsonl")
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(1.0 if executor == "process" else 0.0)  # until there are workers
    process.send(signal.SIGINT, group=True)
    done = process.finish()
    assert done.code == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert not case.output.exists()


DAMAGE = {
    "cut short": lambda data: data[: len(data) // 2],
    "one byte missing": lambda data: data[:-1],
    "empty": lambda data: b"",
    "junk": lambda data: b"\xff" * len(data),
    "a bit flipped": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "zeros at the end": lambda data: data[:-64] + bytes(64),
}


@pytest.mark.parametrize("kind", ["basis", "result"])
@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_cache_entry_is_said_and_made_again(case, undisturbed, kind: str, damage: str) -> None:
    shutil.copytree(undisturbed.cache, case.cache)
    if kind == "basis":  # bases are only looked at where there is no result
        for file in (case.cache / "result").rglob("*.safetensors"):
            file.unlink()
    victim = sorted((case.cache / kind).rglob("*.safetensors"))[0]
    victim.write_bytes(DAMAGE[damage](victim.read_bytes()))
    done = case.run("--overwrite")
    assert done.code == 0, done.stderr
    assert victim.name in done.stderr
    assert case.output.read_bytes() == undisturbed.output
    assert "warning" not in case.run("--overwrite").stderr


def test_a_cache_folder_that_cannot_be_used(case, tmp_path: Path) -> None:
    (tmp_path / "no folder").write_text("x")
    done = case.run("--cache", tmp_path / "no folder")
    assert done.code == 0, done.stderr
    assert done.stderr.count("warning") == 1


@pytest.mark.parametrize("limit", [100, 5_000, 30_000])
def test_a_disk_that_fills_up_while_writing(case, limit: int) -> None:
    """No file may grow beyond the limit: the operating system's answer is that of a full disk."""
    done = case.run("--cache", "off", file_limit=limit)
    assert done.code == 5, done.stderr
    assert done.errors == 1
    assert "Traceback" not in done.stderr
    assert not case.output.exists()
    assert list(case.files.folder.rglob("*.partial")) == []


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs more rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_for_the_output(case, small_disk: Path) -> None:
    output = small_disk / "out.safetensors"
    done = case.run("-o", output)
    assert done.code == 5, done.stderr
    assert done.errors == 1
    assert "will be written, but the disk of" in done.stderr  # before the work
    assert str(small_disk) in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
    assert list(small_disk.rglob("*.partial")) == []


def test_a_disk_too_small_for_the_cache_is_only_said(case, undisturbed, small_disk: Path) -> None:
    expected = undisturbed.output
    done = case.run("--cache", small_disk / "cache")
    assert done.code == 0, done.stderr
    assert done.stderr.count("warning") == 1
    assert case.output.read_bytes() == expected


def test_two_at_once_with_one_cache(case, undisturbed) -> None:
    expected = undisturbed.output
    outputs = [case.files.folder / f"out-{number}.safetensors" for number in range(3)]
    processes = [case.start("-o", output) for output in outputs]
    for process in processes:
        done = process.finish()
        assert done.code == 0, done.stderr
        assert "warning" not in done.stderr
    assert {output.read_bytes() for output in outputs} == {expected}


def test_the_output_reads_back(case) -> None:
    assert case.run().code == 0
    assert len(load_file(case.output)) == 40


def test_a_working_folder_that_is_gone(case, tmp_path: Path) -> None:
    """The numerical libraries would end the process there, without a word that helps."""
    folder = tmp_path / "gone"
    folder.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from loraport.cli.main import run; run()"
    words = [str(word) for word in case.words()]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "the working folder is gone" in done.stderr
    assert "Traceback" not in done.stderr
