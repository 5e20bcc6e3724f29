"""Digests are remembered for as long as the file is the same, and damage only costs another hashing."""

import pickle
import threading
from pathlib import Path

from loraport.store.digests import DigestMemo

HEX = "0123456789abcdef" * 4


def test_remembered_in_memory_and_on_disk(tmp_path: Path) -> None:
    calls = []

    def compute() -> str:
        calls.append(1)
        return HEX

    with DigestMemo(tmp_path) as memo:
        assert memo.digest("file-1", "a", compute) == HEX
        assert memo.digest("file-1", "a", compute) == HEX
    again = DigestMemo(tmp_path)
    assert again.digest("file-1", "a", compute) == HEX
    assert len(calls) == 1
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
    with DigestMemo(tmp_path) as memo:
        memo.put("file", "a", HEX)
        memo.put("other", "a", HEX)
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
    with DigestMemo(tmp_path) as memo:
        memo.put("file", "a", HEX)
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
    with DigestMemo(tmp_path) as memo:
        memo.put("file", "b", HEX)
    assert DigestMemo(tmp_path).get("file", "b") == HEX


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with DigestMemo(tmp_path / "file") as memo:
        assert memo.digest("f", "a", lambda: HEX) == HEX


def test_no_root_stays_in_memory(tmp_path: Path) -> None:
    with DigestMemo(None) as memo:
        memo.put("f", "a", HEX)
        memo.flush()
        assert memo.get("f", "a") == HEX


def test_threads(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path, batch=7)

    def work(which: int) -> None:
        for number in range(40):
            memo.digest("file", f"{which}-{number}", lambda: HEX)

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
