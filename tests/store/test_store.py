"""The store: what goes in comes out, or nothing does. Damage is reported and never used."""

import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from loraport.errors import FileError
from loraport.store import index
from loraport.store.digests import DigestMemo
from loraport.store.entry import Entry
from loraport.store.index import entry_key
from loraport.store.store import NullStore, Store

SHAPES = {"U": (6, 4), "S": (4,), "Vh": (4, 5)}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def key_of(number: int) -> str:
    return entry_key({"number": number})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", reserve_bytes=0)


def put_one(store: Store, number: int = 0) -> Path:
    assert store.put("basis", key_of(number), tensors(number), {"driver": "gram"})
    return store.path("basis", key_of(number))


def test_what_goes_in_comes_out(store: Store) -> None:
    path = put_one(store)
    assert path.parent.name == path.name[:2]
    entry = store.get("basis", key_of(0), SHAPES)
    assert isinstance(entry, Entry)
    assert entry.meta == {"driver": "gram"}
    assert set(entry) == set(SHAPES)
    assert all(torch.equal(entry[name], tensor) for name, tensor in tensors().items())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(7, dtype=torch.uint8),
        torch.tensor([True, False, True]),
        torch.randn(3, 3).to(torch.bfloat16),
        torch.randn(5).to(torch.float16),
        torch.randn(5, dtype=torch.float64),
        torch.zeros(4, 0),
        torch.tensor(3),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_every_dtype_and_odd_shape(store: Store, tensor: torch.Tensor) -> None:
    mixed = {"a": torch.linspace(0, 1, 3), "odd": tensor, "z": torch.arange(5, dtype=torch.uint8)}
    assert store.put("result", key_of(1), mixed)
    entry = store.get("result", key_of(1))
    assert entry is not None
    assert entry["odd"].dtype == tensor.dtype
    assert torch.equal(entry["odd"], tensor)
    assert torch.equal(entry["z"], mixed["z"])
    assert store.verify() == []


def test_non_contiguous_tensors(store: Store) -> None:
    big = torch.arange(48.0).reshape(6, 8)
    store.put("basis", key_of(0), {"t": big.T, "s": big[:, ::2]})
    entry = store.get("basis", key_of(0))
    assert torch.equal(entry["t"], big.T)
    assert torch.equal(entry["s"], big[:, ::2])


def test_absent_is_none_and_no_problem(store: Store) -> None:
    assert store.get("basis", key_of(9)) is None
    assert store.take_problems() == []


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "three bytes": lambda path: path.write_bytes(b"abc"),
    "junk": lambda path: path.write_bytes(b"\xff" * 500),
    "cut by one byte": lambda path: cut(path, 1),
    "cut by half": lambda path: cut(path, path.stat().st_size // 2),
    "cut inside the header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "bytes appended": lambda path: path.write_bytes(path.read_bytes() + b"12345678"),
    "a bit flipped in the last tensor": lambda path: flip(path, -3),
    "data zeroed": lambda path: path.write_bytes(path.read_bytes()[:-100] + bytes(100)),
    "a plain safetensors file": lambda path: __import__("safetensors.torch").torch.save_file(tensors(), path),
    "an entry of another key": lambda path: path.write_bytes(put_one_elsewhere(path).read_bytes()),
}


def put_one_elsewhere(path: Path) -> Path:
    return put_one(Store(path.parents[3] / "other", reserve_bytes=0), number=5)


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_entry_is_dropped_reported_and_can_be_put_again(store: Store, damage: str) -> None:
    path = put_one(store)
    DAMAGE[damage](path)
    assert [problem.what for problem in store.verify()] == ["damaged"]
    assert store.get("basis", key_of(0), SHAPES) is None
    assert not path.exists()
    (problem,) = store.take_problems()
    assert problem.what == "damaged"
    assert key_of(0) in problem.message
    assert store.take_problems() == []
    put_one(store)
    assert store.get("basis", key_of(0), SHAPES) is not None


def test_unexpected_names_or_shapes_count_as_damage(store: Store) -> None:
    put_one(store)
    assert store.get("basis", key_of(0), SHAPES | {"S": (5,)}) is None
    assert "(5,)" in store.take_problems()[0].detail


def test_every_single_cut_is_noticed(store: Store) -> None:
    path = put_one(store)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert store.get("basis", key_of(0)) is None
    assert len(store.take_problems()) == len(range(0, len(whole), 7))


def edit_header(path: Path, name: str, value: str) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"][name] = value
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1, 6), (6, 1), (1, 1)])
def test_numbers_lie_as_they_lay(store: Store, shape: tuple[int, int]) -> None:
    """Products round by it: what was found here must compute as what was put here."""
    numbers = torch.arange(float(shape[0] * shape[1]))
    lying, turned = numbers.reshape(shape), numbers.clone().reshape(shape[::-1]).T
    assert store.put("basis", key_of(2), {"lying": lying, "turned": turned, "cube": torch.zeros(2, 3, 4)})
    entry = store.get("basis", key_of(2), {"lying": shape, "turned": shape, "cube": (2, 3, 4)})
    assert entry is not None
    assert torch.equal(entry["turned"], turned)
    assert (entry["lying"].stride(), entry["turned"].stride()) == (lying.stride(), turned.stride())


def test_an_entry_of_a_newer_format_is_left_alone(store: Store) -> None:
    path = put_one(store)
    edit_header(path, "loraport.store.version", "4")
    assert store.get("basis", key_of(0)) is None
    assert path.exists()
    assert store.take_problems()[0].what == "newer"


def test_an_entry_of_an_older_format_is_a_miss_and_no_problem(store: Store) -> None:
    path = put_one(store)
    edit_header(path, "loraport.store.version", "2")
    assert [problem.what for problem in store.verify()] == ["older"]
    assert path.exists()
    assert store.get("basis", key_of(0)) is None
    assert store.take_problems() == []
    put_one(store)
    assert store.get("basis", key_of(0)) is not None


def exchange_words(path: Path) -> None:
    """Two words exchanged, which leave a sum as it was."""
    data = path.read_bytes()
    path.write_bytes(data[:-16] + data[-8:] + data[-16:-8])


@pytest.mark.parametrize("change", [exchange_words, lambda path: edit_header(path, "driver", "another")])
def test_the_checksum_sees_order_and_texts(store: Store, change) -> None:
    path = put_one(store)
    change(path)
    assert [problem.what for problem in store.verify()] == ["damaged"]
    assert store.get("basis", key_of(0)) is None
    assert not path.exists()


def test_a_cache_has_room_for_what_the_disk_has(store: Store) -> None:
    held = put_one(store).stat().st_size
    assert index.room(store.root, 1000, 0) == 900
    assert index.room(store.root, 10**18, 10**18) == held  # a full disk
    assert held < index.room(store.root, 10**18, 0) < 10**18


def test_a_full_disk_stops_caching_once_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path, reserve_bytes=10**18)
    assert not store.put("basis", key_of(0), tensors())
    assert not store.put("basis", key_of(1), tensors())
    (problem,) = store.take_problems()
    assert problem.what == "unwritable"
    assert "free" in problem.message
    assert store.get("basis", key_of(0)) is None


def test_a_disk_that_fills_while_writing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert not store.put("basis", key_of(0), tensors())
    assert [problem.what for problem in store.take_problems()] == ["unwritable"]
    assert list(store.root.rglob("*.partial")) == []


def test_a_root_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = Store(tmp_path / "file", reserve_bytes=0)
    assert store.get("basis", key_of(0)) is None
    assert store.get("basis", key_of(1)) is None
    assert not store.put("basis", key_of(0), tensors())
    assert store.entries() == []
    assert [problem.what for problem in store.take_problems()] == ["unwritable"]


def test_an_entry_that_cannot_be_read_is_said_once_and_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_one(store)

    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert store.get("basis", key_of(0)) is None
    assert store.get("basis", key_of(0)) is None
    monkeypatch.undo()
    assert path.exists()
    assert [problem.what for problem in store.take_problems()] == ["unreadable"]


def test_what_another_process_removes_meanwhile_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing it and asking for its size, and between reading it and marking it as used."""
    put_one(store)
    listed, touched = index._files, index.touch

    def removed(folder: Path) -> list[os.DirEntry]:
        files = list(listed(folder))
        for file in files:
            os.unlink(file.path)
        return files

    monkeypatch.setattr(index, "_files", removed)
    assert store.entries() == []
    monkeypatch.undo()
    assert not index.remove(put_one(store).with_suffix(".gone"))
    monkeypatch.setattr(index, "touch", lambda path: (path.unlink(), touched(path)))
    assert store.get("basis", key_of(0)) is not None
    assert store.take_problems() == []


def test_the_bound_drops_the_least_recently_used(tmp_path: Path) -> None:
    size = put_one(Store(tmp_path / "probe", reserve_bytes=0)).stat().st_size
    store = Store(tmp_path / "cache", max_bytes=size * 4, reserve_bytes=0)
    for number in range(4):
        path = put_one(store, number)
        os.utime(path, (1000 + number, 1000 + number))
    assert store.get("basis", key_of(0)) is not None  # used just now
    put_one(store, 4)
    put_one(store, 5)
    left = {info.key for info in store.entries()}
    assert {key_of(0), key_of(5)} <= left
    assert key_of(1) not in left
    assert sum(info.bytes for info in store.entries()) <= store.max_bytes


def test_an_entry_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=10, reserve_bytes=0)
    assert not store.put("basis", key_of(0), tensors())
    assert store.take_problems()[0].what == "unwritable"


def test_gc_by_age_and_leftovers(store: Store) -> None:
    old, new = put_one(store, 0), put_one(store, 1)
    os.utime(old, (1000, 1000))
    leftover = new.parent / f".{new.name}.abc.partial"
    leftover.write_bytes(b"half")
    index.collect(store.root, older_than=3600.0)
    assert [info.path for info in store.entries()] == [new]
    assert not leftover.exists()  # nobody holds its lock
    leftover.write_bytes(b"half")
    index.collect(store.root)
    assert not leftover.exists()


def test_clear_deletes_entries_and_nothing_else(store: Store) -> None:
    path, memo = put_one(store), DigestMemo(store.root)
    memo.put("file", "a", "ab" * 8)
    memo.flush()
    leftover = path.parent / f".{path.name}.abc.partial"
    leftover.write_bytes(b"half")
    strangers = [store.root / "basis" / "notes.txt", path.parent / "mine.safetensors", store.root / "result.txt"]
    for stranger in strangers:
        stranger.write_text("keep me")
    assert len(index.clear(store.root)) == 1
    assert store.entries() == []
    assert not leftover.exists()
    assert DigestMemo(store.root).get("file", "a") is None
    assert all(stranger.exists() for stranger in strangers)


def test_pickled_to_another_process_and_back(store: Store) -> None:
    put_one(store)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.root == store.root
    assert copy.get("basis", key_of(0)) is not None


def test_null_store_keeps_nothing(tmp_path: Path) -> None:
    store = NullStore()
    assert not store.put("basis", key_of(0), tensors())
    assert store.get("basis", key_of(0)) is None
    assert not (tmp_path / "cache").exists()
    assert isinstance(pickle.loads(pickle.dumps(store)), NullStore)


def test_threads_that_put_and_get_the_same_entries(store: Store) -> None:
    wrong = []

    def work() -> None:
        for number in range(20):
            store.put("basis", key_of(number % 5), tensors(number % 5))
            entry = store.get("basis", key_of(number % 5), SHAPES)
            if entry is None or not torch.equal(entry["U"], tensors(number % 5)["U"]):
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.take_problems() == []


def test_a_writer_killed_at_any_moment_leaves_no_bad_entry(store: Store) -> None:
    code = (
        "import sys, torch; from loraport.store.index import entry_key; from loraport.store.store import Store\n"
        "store = Store(sys.argv[1], reserve_bytes=0); print('ready', flush=True)\n"
        "while True:\n"
        "    for n in range(50): store.put('basis', entry_key({'number': n}), {'U': torch.ones(300, 300)})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        while len(store.entries()) < 5:
            assert process.poll() is None
        process.kill()
    assert len(store.entries()) >= 5
    assert store.verify() == []


def test_keys_are_canonical() -> None:
    assert entry_key({"a": 1, "b": [1.5, None]}) == entry_key({"b": (1.5, None), "a": 1})
    assert entry_key({"a": 1}) != entry_key({"a": 2})
    assert len(entry_key({"ü": "日本"})) == 64
    with pytest.raises(ValueError, match="JSON"):
        entry_key({"a": float("nan")})


@pytest.mark.parametrize(("kind", "key"), [("drift", "0" * 64), ("basis", "../../etc/passwd"), ("basis", "A" * 64)])
def test_names_that_would_leave_the_cache(store: Store, kind: str, key: str) -> None:
    with pytest.raises(ValueError, match=r"kind|digits"):
        store.path(kind, key)


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAPORT_CACHE", str(tmp_path / "größe x"))
    assert index.cache_root() == tmp_path / "größe x"
    monkeypatch.delenv("LORAPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert index.cache_root().name == "loraport"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert index.cache_root("~/mine") == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert index.cache_root("neither/is/there") == Path("neither/is/there")


@pytest.mark.parametrize("chosen", ["~nobody-of-this-name/cache", "/dev/null/cache", "/dev/null", "x" * 300, "a\0b"])
def test_a_place_where_no_cache_can_be(chosen: str) -> None:
    with pytest.raises(FileError, match="cannot be used") as caught:
        index.cache_root(chosen)
    assert caught.value.fix is not None


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LORAPORT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(FileError, match="cannot be used"):
        index.cache_root()
