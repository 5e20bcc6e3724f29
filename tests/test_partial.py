"""What a killed process left is removed by the next; what is being written is left alone."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from loraport import partial
from loraport.files import write_bytes
from loraport.partial import forget, partial_file, remove_abandoned
from loraport.store import index

WRITER = """
import sys, time
from pathlib import Path
from loraport.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half of it")
    print("ready", flush=True)
    time.sleep(60)
"""


def _partials(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.partial"))


@pytest.fixture
def writer(tmp_path: Path):
    """Begins to write a file in a process of its own, and holds there."""
    started: list[subprocess.Popen] = []

    def start(path: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_leftovers_go_once_their_writer_is_dead(tmp_path: Path, writer) -> None:
    path = tmp_path / "out.safetensors"
    process = writer(path)
    (left,) = _partials(tmp_path)
    write_bytes(path, b"another run writes the same name meanwhile")
    assert (left / "data").read_bytes() == b"half of it"
    assert remove_abandoned(path) == 0
    process.kill()
    process.wait()
    assert left.exists()
    write_bytes(tmp_path / "other", b"another name")
    assert left.exists()
    write_bytes(path, b"whole")
    assert _partials(tmp_path) == []
    assert path.read_bytes() == b"whole"


@pytest.mark.skipif(os.name == "nt", reason="no folder is locked")
def test_a_folder_that_was_taken_for_abandoned_before_it_was_locked_is_made_anew(tmp_path: Path, monkeypatch) -> None:
    path, lock, removed = tmp_path / "out", partial._lock, []

    def late(handle: int) -> bool | None:
        if not removed:
            removed.extend(_partials(tmp_path))
            removed[0].rmdir()
            removed[0].mkdir()  # of somebody else
        return lock(handle)

    monkeypatch.setattr(partial, "_lock", late)
    with partial_file(path) as temporary:
        assert temporary.parent not in removed
        assert remove_abandoned(path) == 1
        temporary.write_bytes(b"whole")
    assert _partials(tmp_path) == []


def test_leftovers_in_the_cache(tmp_path: Path, writer) -> None:
    path = index.entry_path(tmp_path, "prepared", "ab" * 32)
    process = writer(path)
    assert index.sweep(tmp_path) == 0
    process.kill()
    process.wait()
    assert index.sweep(tmp_path) == 1
    assert _partials(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="no limits on the size of files")
def test_a_process_killed_while_the_stock_writer_writes(tmp_path: Path) -> None:
    """It makes a temporary file of its own; a limit on the size of files ends the process right there."""
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_CORE, (0, 0));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        "from loraport.adapters.render import write_adapter;"
        "write_adapter(Path(sys.argv[1]), {'x': torch.ones(100_000)}, {})"
    )
    path = tmp_path / "out.safetensors"
    # Without -B, bytecode is cut at the limit as well, and whoever imports that module afterwards fails.
    done = subprocess.run([sys.executable, "-B", "-c", code, str(path)], capture_output=True)
    assert done.returncode == -signal.SIGXFSZ
    assert list(tmp_path.iterdir()) != []
    assert remove_abandoned(path) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="no locks that end with the process")
def test_a_job_is_given_what_it_left_and_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def fail(job: str, data: bytes) -> None:
        with contextlib.suppress(KeyError), partial_file(path, job) as temporary:
            assert not temporary.exists()
            temporary.write_bytes(data)
            raise KeyError

    fail("one", b"half")
    with partial_file(path, "one") as temporary:
        assert temporary.read_bytes() == b"half"
        with partial_file(path, "one") as other:  # in use
            assert not other.exists()
        assert temporary.exists()
    assert _partials(tmp_path) == []
    fail("one", b"half")
    fail("two", b"other half")
    with contextlib.suppress(KeyError), partial_file(path, "two") as temporary:
        assert temporary.read_bytes() == b"other half"
        for _ in range(2):  # what is of no job is forgotten already
            forget(temporary)
        raise KeyError
    assert _partials(tmp_path) == []


def test_without_locks_old_files_are_taken_for_abandoned(tmp_path: Path, monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(handle: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")  # as a share of another machine may answer

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "out"
    young, old = tmp_path / ".out.abcdefg1.partial", tmp_path / ".out.abcdefg2.partial"
    for left in (young, old):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    write_bytes(path, b"whole")
    assert _partials(tmp_path) == [young]


def test_only_names_of_ours_are_touched(tmp_path: Path) -> None:
    names = [".out.partial", ".out.abcdefgh.partial.txt", ".output.abcdefgh.partial", "out.abcdefgh.partial"]
    for name in names:
        (tmp_path / name).write_bytes(b"precious")
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / ".out.abcdefgh.partial").symlink_to(target)
    write_bytes(tmp_path / "out", b"whole")
    assert all((tmp_path / name).exists() for name in names)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["x" * 250, "ä" * 120])
def test_a_name_as_long_as_the_system_allows(tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / name, b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot lock a folder")
def test_a_folder_that_a_cleaner_finds_before_it_is_locked_is_not_used(tmp_path: Path, monkeypatch) -> None:
    """Whoever writes the same name at that moment takes it for abandoned, and removes it under the writer's hands."""
    import fcntl

    found: list[int] = []
    make = tempfile.mkdtemp

    def found_at_once(**where: str) -> str:
        folder = make(**where)
        if not found:
            found.append(os.open(folder, os.O_RDONLY))
            fcntl.flock(found[0], fcntl.LOCK_EX)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", found_at_once)
    with partial_file(tmp_path / "out") as data:
        os.close(found[0])  # the cleaner is done
        assert remove_abandoned(tmp_path / "out") == 1  # and only what nobody uses is gone
        data.write_bytes(b"x")
