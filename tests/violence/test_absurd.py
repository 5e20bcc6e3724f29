"""Absurd names, texts and numbers, and a system that says no: one message with a code of its own, never a bug.

Whatever is printed is printable: no escape sequence of a terminal, no line break and no change of direction from a
file reaches it, in messages, tables and remarks alike.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pico
from loraport.cli.guard import guarded
from loraport.cli.main import app
from privileges import unprivileged

EVIL = "\x1b]0;gone\x07\x1b[2J\nerror: forged\r\u202egpj.\u2066\x9b31m[bold red]x[/]"
NAMES = ("x" * 300, "~nobody/x", "", "/", "/proc/self/mem", "\udcff\udcfe", EVIL, "zoo:../x", "file:///x")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pico.Pico:
    return pico.write(tmp_path_factory.mktemp("pico"))


@pytest.fixture
def files(kept: pico.Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pico.Pico:
    folder = tmp_path / "files"
    shutil.copytree(kept.folder, folder)
    monkeypatch.chdir(folder)
    return pico.Pico(folder, *(folder / path.name for path in (kept.source, kept.target, kept.lora)))


def tried(*words: object) -> str:
    """What a command said, which must have ended in good order."""
    done = CliRunner().invoke(app, [str(word) for word in words], prog_name="loraport")
    said = done.stdout + done.stderr
    assert done.exit_code in (0, 2, 3, 4, 5), f"{words}: {said}"
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) <= 1, said
    raw = {char for char in said if not char.isprintable() and char != "\n"}
    assert not raw, f"{words}: {raw}"
    assert not any(line.startswith("error: forged") for line in said.splitlines()), said
    return said


PAIR = ("style.safetensors", "-s", "source.safetensors", "-t", "target.safetensors")
PLACES: dict[str, tuple[str, ...]] = {
    "lora": ("plan", "NAME", *PAIR[1:]),
    "source": ("plan", *PAIR, "--source", "NAME"),
    "target": ("plan", *PAIR, "--target", "NAME"),
    "target lora": ("plan", *PAIR[:3], "--target-lora", "NAME:0.5"),
    "log": ("transfer", *PAIR, "-o", "out.safetensors", "--log", "NAME"),
    "cache": ("cache", "ls", "--cache", "NAME"),
    "recipe": ("plan", "--recipe", "NAME"),
    "inspect": ("inspect", "NAME"),
    "verify": ("verify", "style.safetensors", "--no-load", "--model", "NAME"),
    "convert": ("convert", "style.safetensors", "-o", "NAME"),
    "profile": ("convert", "style.safetensors", "-o", "out.safetensors", "--to", "NAME"),
    "method": ("methods", "NAME"),
    "setting": ("plan", *PAIR, "--set", "NAME"),
    "layers": ("plan", *PAIR, "--layers", "NAME"),
    "nested": ("plan", *PAIR, "--nested-target", "NAME"),
    "device": ("transfer", *PAIR, "-o", "out.safetensors", "--device", "NAME"),
    "plot": ("calibrate", "zoo:outline", "-s", "zoo:no", "-t", "zoo:no", "-o", "out.safetensors", "--plot", "NAME"),
    "demo": ("demo", "--lora", "NAME"),
    "command": ("NAME",),
    "flag": ("plan", "--NAME"),
}


@pytest.mark.parametrize("place", PLACES)
def test_absurd_names(files: pico.Pico, place: str) -> None:
    before = {path.name for path in files.folder.iterdir()}
    for name in NAMES:
        tried(*(word.replace("NAME", name) for word in PLACES[place]))
    assert before <= {path.name for path in files.folder.iterdir()}


def rewritten(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a safetensors file, past what the stock writer lets through."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def metadata(**texts: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.setdefault("__metadata__", {}).update(texts)


DIGITS = "9" * 5000
HEADERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "lone surrogates": metadata(title="\udc80", ss_network_alpha="\ud800"),
    "numbers of 40 digits": metadata(ss_network_alpha="9" * 40, ss_network_dim="9" * 40),
    "numbers of 5000 digits": metadata(ss_network_alpha=DIGITS, lora_adapter_metadata=f'{{"lora_alpha": {DIGITS}}}'),
    "numbers that are none": metadata(lora_adapter_metadata='{"transformer.r": 4, "transformer.lora_alpha": NaN}'),
    "nesting": metadata(lora_adapter_metadata="[" * 20000),
    "our own header, nested": metadata(**{"loraport.version": "1", "loraport.recipe": "[" * 20000}),
    "our own header, odd": metadata(**{"loraport.version": "1", "loraport.recipe": "3", "loraport.summary": "[]"}),
    "escapes in metadata": metadata(**{"modelspec.title": EVIL, "ss_training_comment": EVIL}),
    "escapes in a key": lambda header: header.update({EVIL: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "a dimension of 40 digits": lambda header: header.update(
        {key: {**value, "shape": [10**40, 1]} for key, value in header.items() if "ffn.0" in key}
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("role", ["lora", "source"])
def test_absurd_headers(files: pico.Pico, kind: str, role: str) -> None:
    rewritten(getattr(files, role), HEADERS[kind])
    pair = [files.lora, "-s", files.source, "-t", files.target]
    tried("inspect", getattr(files, role), "-vv")
    facts = tried("inspect", getattr(files, role), "--json")
    json.loads(facts)
    tried("plan", *pair, "-v")
    tried("transfer", *pair, "-o", "out.safetensors", "--cache", "off", "-v", "--allow-partial", "--force")
    if role == "lora":
        tried("verify", files.lora, "--no-load")
        tried("convert", files.lora, "-o", "converted.safetensors")


CONFIGURATIONS = {
    "nesting": "[" * 20000,
    "digits": f'{{"r": 4, "lora_alpha": {DIGITS}}}',
    "infinity": '{"r": 4, "lora_alpha": 1e999}',
    "a list": "[1, 2]",
    "bytes": b"\xff\xfe\x00",
    "escapes": json.dumps({"r": 4, "lora_alpha": 4, "peft_type": EVIL, "base_model_name_or_path": EVIL}),
    "a folder": None,
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_absurd_configurations(files: pico.Pico, kind: str) -> None:
    content, path = CONFIGURATIONS[kind], files.folder / "adapter_config.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    tried("inspect", files.lora)
    tried("plan", files.lora, "-s", files.source, "-t", files.target)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users of this kind")
def test_what_may_not_be_read_or_written(files: pico.Pico) -> None:
    pair = [files.lora, "-s", files.source, "-t", files.target]
    tried("transfer", *pair, "-o", "out.safetensors", "--cache", "off")  # what is loaded on first use is loaded now
    for folder in (files.folder, *files.folder.parents[:4]):
        folder.chmod(0o755)
    for file in files.folder.iterdir():
        file.chmod(0o644)
    config = files.folder / "adapter_config.json"
    config.write_text("{}")
    config.chmod(0)
    with unprivileged():
        assert "adapter_config.json" in tried("plan", *pair)
    config.unlink()
    files.folder.chmod(0o555)
    with unprivileged():
        said = tried("transfer", *pair, "-o", files.folder / "new.safetensors")
        assert "no permission" in said
        assert "no permission" in tried("convert", files.lora, "-o", files.folder / "new.safetensors")
    for path, words in ((files.source, ["plan", *pair]), (files.lora, ["inspect", files.lora])):
        path.chmod(0)
        with unprivileged():
            assert "ermission" in tried(*words)
        path.chmod(0o644)
    files.folder.chmod(0o755)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "/there"), "/there"),
        (OSError("a library without a number"), "a library"),
        (RecursionError("maximum recursion depth exceeded"), "nested"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), "Unicode"),
    ],
)
def test_what_nobody_foresaw_but_is_no_bug(error: Exception, says: str, capsys: pytest.CaptureFixture) -> None:
    def command() -> None:
        raise error

    assert guarded(command, as_json=False, verbose=False) == 5
    said = capsys.readouterr().err
    assert says in said
    assert "fault of this program" not in said
