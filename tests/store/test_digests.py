"""Digests are remembered for as long as the file is the same, and damage only costs another hashing."""

import pickle
import threading
from pathlib import Path

from loraport.store.digests import DigestMemo

HEX = "0123456789abcdef" * 4


def test_remembered_in_memory_and_on_disk(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path)
    memo.put("file-1", "a", HEX)
    assert memo.get("file-1", "a") == HEX
    memo.flush()
    again = DigestMemo(tmp_path)
    assert again.get("file-1", "a") == HEX
    assert again.get("file-2", "a") is None
    assert again.get("file-1", "b") is None


def test_written_in_batches(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path, batch=3)
    for name in "ab":
        memo.put("file", name, HEX)
    assert DigestMemo(tmp_path).get("file", "a") is None
    memo.put("file", "c", HEX)
    assert DigestMemo(tmp_path).get("file", "a") == HEX


def test_two_writers_merge(tmp_path: Path) -> None:
    one, two = DigestMemo(tmp_path), DigestMemo(tmp_path)
    one.put("file", "a", HEX)
    two.put("file", "b", HEX)
    one.flush()
    two.flush()
    fresh = DigestMemo(tmp_path)
    assert fresh.get("file", "a") == fresh.get("file", "b") == HEX


def test_what_is_forgotten_is_gone_here_and_on_the_disk(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path)
    memo.put("file", "a", HEX)
    memo.put("other", "a", HEX)
    memo.flush()
    memo = DigestMemo(tmp_path)
    assert memo.is_from_earlier("file", "a")
    memo.put("file", "b", HEX)
    memo.forget("file")
    memo.put("file", "c", HEX)
    memo.flush()
    for each in (memo, DigestMemo(tmp_path)):
        assert [each.get("file", name) for name in "abc"] == [None, None, HEX]
        assert each.get("other", "a") == HEX


def test_a_damaged_page_counts_as_empty(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path)
    memo.put("file", "a", HEX)
    memo.flush()
    (page,) = tmp_path.rglob("*.json")
    for junk in (
        b"",
        b"{",
        b"[]",
        b'{"identity": "other", "digests": {}}',
        b'{"identity":"file","digests":{"a":"zz"}}',
    ):
        page.write_bytes(junk)
        assert DigestMemo(tmp_path).get("file", "a") is None
    memo = DigestMemo(tmp_path)
    memo.put("file", "b", HEX)
    memo.flush()
    assert DigestMemo(tmp_path).get("file", "b") == HEX


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    memo = DigestMemo(tmp_path / "file")
    for file in "fg":
        memo.put(file, "a", HEX)
    memo.flush()
    assert memo.get("f", "a") == HEX


def test_no_root_stays_in_memory(tmp_path: Path) -> None:
    memo = DigestMemo(None)
    memo.put("f", "a", HEX)
    memo.flush()
    assert memo.get("f", "a") == HEX


def test_threads(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path, batch=7)

    def work(which: int) -> None:
        for number in range(40):
            memo.put("file", f"{which}-{number}", HEX)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memo.flush()
    fresh = DigestMemo(tmp_path)
    assert all(fresh.get("file", f"{which}-{number}") for which in range(4) for number in range(40))


def test_pickle(tmp_path: Path) -> None:
    memo = pickle.loads(pickle.dumps(DigestMemo(tmp_path, batch=5)))
    assert memo.root == tmp_path
    memo.put("f", "a", HEX)
    memo.flush()
    for trust in (True, False):  # --verify-inputs holds for every process
        there = pickle.loads(pickle.dumps(DigestMemo(tmp_path, trust=trust)))
        assert there.get("f", "a") == (HEX if trust else None)


def test_a_file_whose_name_is_no_valid_text(tmp_path: Path) -> None:
    """Its digests could not be written, which failed the run after all its work."""
    memo = DigestMemo(tmp_path)
    memo.put("/folder/\udcff 12 34", "a", HEX)
    memo.flush()
    assert DigestMemo(tmp_path).get("/folder/\udcff 12 34", "a") == HEX
