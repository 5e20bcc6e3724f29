"""Entries written behind: in order, within their room, all there at the end, and no error lost."""

import os
import pickle
import threading
from pathlib import Path

import pytest
import torch

from loraport.store.index import entry_key
from loraport.store.store import Store
from loraport.store.writing import Behind


def test_what_waits_is_bounded_and_done_in_order() -> None:
    behind, gate, done = Behind(room=10), threading.Event(), []

    def work(name: str):
        return lambda: (gate.wait(10), done.append(name))

    behind.put(Path("a"), 25, work("a"))  # larger than the room, and alone
    late = threading.Thread(target=behind.put, args=(Path("b"), 4, work("b")))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    gate.set()
    late.join(10)
    behind.put(Path("c"), 6, work("c"))
    behind.wait(Path("c"))
    behind.finish()
    assert done == ["a", "b", "c"]


def test_several_threads_do_several_pieces_at_once() -> None:
    behind, together = Behind(room=10, threads=3), threading.Barrier(3)
    for name in "abc":
        behind.put(name, 1, lambda: together.wait(10))  # raises where fewer come
    behind.finish()


def test_where_nobody_is_patient_what_finds_no_room_is_let_go() -> None:
    behind, gate, done = Behind(room=10), threading.Event(), []
    for name, size in (("a", 25), ("b", 1)):
        behind.put(name, size, lambda name=name: (gate.wait(10), done.append(name)), patient=False)
    gate.set()
    behind.finish()
    behind.put("c", 11, lambda: done.append("c"), patient=False)
    behind.finish()
    assert done == ["a", "c"]


def test_an_error_comes_out_at_the_end_and_stops_nothing() -> None:
    behind, done = Behind(room=10), []

    def fail() -> None:
        raise ValueError("odd")

    behind.put(Path("a"), 1, fail)
    behind.put(Path("b"), 1, lambda: done.append("b"))
    with pytest.raises(ValueError, match="odd"):
        behind.finish()
    behind.finish()
    assert done == ["b"]


def test_what_was_put_is_found_however_late_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loraport.store import store as module

    real, threads = module.write_entry, []

    def slow(*arguments) -> None:
        threads.append(threading.current_thread().name)
        threading.Event().wait(0.02)
        real(*arguments)

    monkeypatch.setattr(module, "write_entry", slow)
    store = Store(tmp_path, reserve_bytes=0, behind=100)
    keys = [entry_key({"n": n}) for n in range(5)]
    for n, key in enumerate(keys):
        assert store.put("basis", key, {"S": torch.full((9,), float(n))})
    assert float(store.get("basis", keys[4])["S"][0]) == 4.0
    store.finish()
    assert len(store.entries()) == 5
    assert not any(name == threading.current_thread().name for name in threads)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.put("basis", entry_key({"n": 9}), {"S": torch.ones(1)})
    assert threads[-1] == threading.current_thread().name  # a copy writes at once


def test_a_disk_that_is_full_is_said_once(tmp_path: Path) -> None:
    store = Store(tmp_path, reserve_bytes=10**18, behind=1000)
    for n in range(3):
        store.put("basis", entry_key({"n": n}), {"S": torch.ones(3)})
    store.finish()
    assert [problem.what for problem in store.take_problems()] == ["unwritable"]
    assert not store.put("basis", entry_key({"n": 4}), {"S": torch.ones(3)})
    assert [name for name in os.listdir(tmp_path) if name == "basis"] == []
