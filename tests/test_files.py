"""Files are written whole or not at all, and the same content gives the same bytes."""

import contextlib
import errno
import json
import os
from pathlib import Path

import pytest

from loraport import files, writable
from loraport.errors import FileError
from privileges import unprivileged


def test_a_failure_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "out.json"
    files.write_json(path, {"version": 1})

    def fail():
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert json.loads(path.read_text()) == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path):
    path = tmp_path / "out.bin"

    def fill():
        with files.atomic_path(path, need_bytes=10):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FileError, match="disk is full") as caught:
        fill()
    assert caught.value.exit_code == 5
    assert "10 bytes" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_no_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FileError, match="larger than the limit on file sizes") as caught:
            files.write_bytes(tmp_path / "out.bin", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ulimit -f" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_seen_before_anything_is_written(tmp_path):
    with (
        pytest.raises(FileError, match="not enough room"),
        files.atomic_path(tmp_path / "out.bin", need_bytes=10**18),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_within_a_writer_names_the_file_that_was_asked_for(tmp_path):
    with (
        pytest.raises(FileError, match="not enough room") as caught,
        files.atomic_path(tmp_path / "out.bin") as temporary,
        files.atomic_path(temporary, need_bytes=10**18),
    ):
        pytest.fail("the block must not run")
    assert caught.value.where == str(tmp_path / "out.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="could not write") as caught:
        files.write_text(tmp_path / "file" / "out.txt", "hello")
    assert "out.txt" in caught.value.where


def test_a_name_that_is_taken_meanwhile_is_not_taken_away(tmp_path):
    path = tmp_path / "out.txt"

    def write():
        with files.atomic_path(path, overwrite=False) as temporary:
            temporary.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(FileError, match="appeared"):
        write()
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    with files.atomic_path(path, overwrite=False) as temporary:
        temporary.write_text("ours")
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/out.txt"])
def test_a_name_that_cannot_be_is_said_so_before_the_work(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=r"cannot be written there|cannot have this name on Windows"):
        writable.check_output(tmp_path / name, overwrite=True)


def test_an_output_has_the_permissions_of_a_new_file_and_the_mask_stays(tmp_path, monkeypatch):
    """Two threads that asked for the mask at once, by setting it, could leave it at nothing for good."""

    def refuse(mask):
        raise AssertionError("the mask is one of the whole process")

    for mask in (0o027, 0o002):
        with contextlib.ExitStack() as stack:
            stack.callback(os.umask, os.umask(mask))
            stack.enter_context(monkeypatch.context()).setattr(os, "umask", refuse)
            files.write_bytes(tmp_path / "ours", b"x")
            (tmp_path / "plain").unlink(missing_ok=True)
            (tmp_path / "plain").write_bytes(b"x")
            assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "plain"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_drive_that_refuses_what_others_do_takes_an_output(overwrite, tmp_path, monkeypatch):
    """Drives of Windows under WSL refuse chmod, shared folders of virtual machines fsync, many second names."""

    def refusing(reason):
        def refuse(*given, **named):
            raise OSError(reason, os.strerror(reason))

        return refuse

    for name, reason in (("chmod", errno.EPERM), ("fsync", errno.EINVAL), ("link", errno.EPERM)):
        monkeypatch.setattr(os, name, refusing(reason))
    for text in (b"first", b"second")[: 1 + overwrite]:
        with files.atomic_path(tmp_path / "out", overwrite=overwrite) as temporary:
            temporary.write_bytes(text)
        assert (tmp_path / "out").read_bytes() == text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(FileError, match="could not write"):
        files.write_bytes(tmp_path / "out", b"lost")
    assert (tmp_path / "out").read_bytes() != b"lost"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such folders")
def test_a_folder_that_may_be_written_but_not_listed_takes_an_output(tmp_path, monkeypatch):
    """The name was given, and then the folder could not be opened to be flushed: a failure that was none."""
    drop = tmp_path / "drop"
    drop.mkdir()
    tmp_path.chmod(0o755)
    drop.chmod(0o733)
    monkeypatch.chdir(tmp_path)  # by a name from here, since pytest's folders above are private
    with unprivileged():
        files.write_bytes(Path("drop/out"), b"x")
    assert (drop / "out").read_bytes() == b"x"


def test_a_name_that_begins_with_a_tilde_is_no_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writable.check_output(Path("~style.safetensors"), overwrite=False)
    with pytest.raises(FileError, match="home folder that does not exist"):
        writable.check_output(Path("~nobody/style.safetensors"), overwrite=False)


def test_a_text_may_be_marked_as_utf_8_and_must_be(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "ein Gem\u00e4lde".encode())  # as Windows writes it
    assert files.read_text(path, "file of prompts", most=100) == "ein Gem\u00e4lde"
    path.write_bytes("ein Gem\u00e4lde".encode("cp1252"))
    with pytest.raises(FileError, match=r"(?s)the file of prompts is not UTF-8 text.*save it as UTF-8"):
        files.read_text(path, "file of prompts", most=100)
