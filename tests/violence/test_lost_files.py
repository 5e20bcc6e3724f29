"""Files that nobody gave up stay: no command writes over an input, under whatever name, or over what is not its own."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pico
from loraport.cli.main import app


def _contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass(frozen=True)
class Here:
    """The program in this process, in the folder of the files: most of what is tried here ends before any work."""

    files: pico.Pico

    @property
    def output(self) -> Path:
        return self.files.folder / "out.safetensors"

    def run(self, *more: object):
        files = self.files
        words = ["transfer", files.lora, "-s", files.source, "-t", files.target, "-o", self.output, "--cache", "off"]
        return self.invoke(*words, *more)

    def invoke(self, *words: object):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="loraport")

    def refuses(self, *says: str, more: tuple[object, ...] = ()) -> None:
        done = self.run(*more)
        assert done.exit_code == 5, done.output
        assert done.stderr.count("error: ") == 1
        for text in says:
            assert text in done.stderr


@pytest.fixture
def case(originals: pico.Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    folder = tmp_path / "files"
    shutil.copytree(originals.folder, folder)
    monkeypatch.chdir(folder)
    return Here(
        pico.Pico(folder, *(folder / path.name for path in (originals.source, originals.target, originals.lora)))
    )


def _other_name(path: Path, kind: str) -> Path:
    """Another name for the same file."""
    if kind == "relative":
        return Path("..") / path.parent.name / path.name
    if kind == "through a linked folder":
        linked = path.parent.parent / "door"
        linked.symlink_to(path.parent, target_is_directory=True)
        return linked / path.name
    name = path.with_name(f"another-{kind.replace(' ', '-')}.safetensors")
    (name.symlink_to if kind == "symbolic link" else name.hardlink_to)(path)
    return name


KINDS = ("the same", "relative", "symbolic link", "hard link", "through a linked folder")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["lora", "source", "target"])
@pytest.mark.parametrize("option", ["-o", "--log"])
def test_an_input_is_not_written_over(case, option: str, role: str, kind: str) -> None:
    path = getattr(case.files, role)
    name = path if kind == "the same" else _other_name(path, kind)
    before = _contents(case.files.folder)
    done = case.run(option, name, "--overwrite")
    assert done.exit_code == 5, done.stderr
    assert f"would replace the {'input LoRA' if role == 'lora' else role}" in done.stderr
    assert _contents(case.files.folder) == before


def test_a_log_replaces_only_a_run_log(case) -> None:
    thesis = case.files.folder / "thesis.txt"
    thesis.write_text("three years of work\n")
    case.refuses("run log", thesis.name, "--log off", more=("--log", thesis))
    assert thesis.read_text() == "three years of work\n"
    log = case.files.folder / "my.log"
    assert case.run("--log", log).exit_code == 0
    first = log.read_text()
    assert case.run("--log", log, "-o", case.files.folder / "second.safetensors").exit_code == 0
    assert log.read_text() != first
    assert case.run("--log", thesis, "--overwrite").exit_code == 0  # what was given up is replaced


def test_the_log_beside_the_output_follows_no_link(case) -> None:
    """It once wrote through the link, into the LoRA."""
    beside = case.output.with_name(f"{case.output.stem}.run.jsonl")
    beside.symlink_to(case.files.lora)
    before = _contents(case.files.folder)
    case.refuses("run log would replace the input LoRA", more=("--overwrite",))
    assert _contents(case.files.folder) == before
    beside.unlink()
    other = case.files.folder / "other.txt"
    other.write_text("precious")
    for link in (beside.symlink_to, beside.hardlink_to):
        link(other)
        case.refuses("run log")
        assert case.run("--overwrite").exit_code == 0
        assert other.read_text() == "precious"
        assert '"event": "finished"' in beside.read_text()
        beside.unlink()
        case.output.unlink()


def test_an_output_through_a_link_replaces_the_link(case) -> None:
    kept = case.files.folder / "kept.safetensors"
    kept.write_bytes(b"precious")
    case.output.symlink_to(kept)
    case.refuses("already exists")
    assert case.run("--overwrite").exit_code == 0
    assert kept.read_bytes() == b"precious"
    assert not case.output.is_symlink()
    case.output.unlink()
    case.output.symlink_to(case.files.folder / "nowhere")  # a name that is taken, though nothing is behind it
    case.refuses("already exists")


def test_output_and_log_under_one_name(case) -> None:
    case.refuses("would replace the output", more=("--log", case.output))
    case.refuses("would replace the output", more=("--log", Path(".") / case.output.name.upper()))
    case.refuses("would replace the run log", more=("--report", case.output.with_suffix(".run.jsonl")))
    case.refuses("would replace the page", more=("--report", "page.html", "--card", "page.html"))


def test_the_settings_beside_a_lora_are_an_input(case) -> None:
    config = case.files.folder / "adapter_config.json"
    config.write_text("{}")
    before = _contents(case.files.folder)
    assert case.run("-o", config, "--overwrite").exit_code == 5
    assert _contents(case.files.folder) == before


def test_a_shard_is_an_input(case) -> None:
    folder = case.files.folder / "model"
    folder.mkdir()
    tensors = load_file(case.files.source)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / shard)
    index = {key: shard for shard, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    before = _contents(case.files.folder)
    for file in (*shards, "model.safetensors.index.json"):
        done = case.run("--source", folder, "-o", folder / file, "--overwrite")
        assert done.exit_code == 5, done.stderr
        assert "would replace" in done.stderr
    assert _contents(case.files.folder) == before


@pytest.mark.parametrize("kind", KINDS)
def test_convert_does_not_write_over_its_input(case, kind: str) -> None:
    files: pico.Pico = case.files
    before = _contents(files.folder)
    name = files.lora if kind == "the same" else _other_name(files.lora, kind)
    words = ["convert", files.lora, "--model", files.source, "--overwrite", "-o"]
    for output in (name, files.source, files.folder / "." / files.source.name):
        done = case.invoke(*words, output)
        assert done.exit_code == 5, done.stderr
        assert "would replace" in done.stderr
    assert {name: digest for name, digest in _contents(files.folder).items() if name in before} == before


def test_a_pipe_is_no_output(case) -> None:
    name = case.files.folder / "pipe"  # and not /dev/null, which a program with a fault would replace for all others
    os.mkfifo(name)
    case.refuses("not a regular file", more=("-o", name, "--overwrite"))
    assert name.is_fifo()


def test_a_stream_of_the_process_is_no_output(case) -> None:
    name = case.files.folder / "stdout"  # what /dev/stdout is; to replace that one would break the machine
    name.symlink_to("/proc/self/fd/1")
    case.refuses("not a regular file", more=("-o", name, "--overwrite"))
    case.refuses("not a regular file", more=("--log", name, "--overwrite"))
    assert name.is_symlink()


@pytest.mark.parametrize("option", ["-o", "--log", "--report"])
def test_the_recipe_file_is_an_input(case, option: str) -> None:
    recipe = case.files.folder / "recipe.yaml"
    recipe.write_text("method: direct\n")
    case.refuses("would replace the recipe", more=("--recipe", recipe, option, recipe, "--overwrite"))
    assert recipe.read_text() == "method: direct\n"


def test_the_output_of_one_lora_does_not_replace_another(case) -> None:
    folder = case.files.folder / "first"
    folder.mkdir()
    shutil.copy(case.files.lora, folder)  # under the name that the second LoRA's output will have
    before = _contents(folder)
    files = case.files
    words = ["transfer", folder, files.lora, "-s", files.source, "-t", files.target, "--method", "direct"]
    done = case.invoke(*words, "--cache", "off", "-o", folder, "--overwrite")
    assert done.exit_code == 5, done.output
    assert "would replace the input LoRA" in done.stderr
    assert before.items() <= _contents(folder).items()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_is_said_before_the_work(case) -> None:
    folder = case.files.folder / "closed"
    folder.mkdir(mode=0o500)
    case.refuses("no permission", more=("-o", folder / "out.safetensors"))


def test_a_folder_of_somebody_else_is_no_folder_for_results(case) -> None:
    page = case.files.folder / "index.html"
    page.write_text("my own page")
    before = _contents(case.files.folder)
    done = case.invoke("demo", "-o", case.files.folder)
    assert done.exit_code == 5, done.output
    assert "index.html" in done.stderr
    (case.files.folder / "evidence.json").write_text("{}")
    done = case.invoke("evaluate", "--quick", "-o", case.files.folder)
    assert done.exit_code == 5, done.output
    assert "evidence.json" in done.stderr
    assert before.items() <= _contents(case.files.folder).items()
