"""What a TAB completes: asked of the program as a shell does, and once of a real shell on a terminal of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import loraport

HEAVY = ("torch", "numpy", "diffusers", "matplotlib", "jinja2", "transformers", "safetensors")
RUN = """
import json, sys
from typer.testing import CliRunner
from loraport.cli.main import app
told = []
for line in json.load(sys.stdin):
    at = str(len(line.split(" ")) - 1)
    env = {"_LORAPORT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": at}
    done = CliRunner().invoke(app, [], prog_name="loraport", env=env)
    told.append([done.exit_code, done.output.split(), [name for name in sys.argv[1].split(",") if name in sys.modules]])
print(json.dumps(told))
"""
COMPLETED = {
    "loraport tr": ["transfer"],
    "loraport transfer --sour": ["--source", "--source-lora", "--source-low"],
    "loraport transfer --method ma": ["matched-gain", "masked-restore"],
    "loraport sweep --method direct --method matched": ["matched-gain"],
    "loraport methods released": ["released-code"],
    "loraport plan --preset restore": ["restore-only"],
    "loraport convert style.safetensors --to ko": ["kohya"],
    "loraport resize --to same": ["same-as-input"],
    "loraport transfer --dtype bf": ["bfloat16"],
    "loraport sweep --dtype float": ["float32", "float16"],
    "loraport transfer --expert ": ["high", "low", "both"],
    "loraport check --expert ": ["high", "low"],
    "loraport calibrate --target-sampler re": ["renoise"],
    "loraport transfer --executor pro": ["process"],
    "loraport inspect --ar": [],
    "loraport analyze --architecture wa": ["wan"],
    "loraport analyze --architecture an": ["any"],
    "loraport verify --for Comf": ["ComfyUI"],
    "loraport merge --dequantize bf": ["bfloat16"],
    "loraport cache g": ["gc"],
    "loraport cache gc --older": ["--older-than"],
    "loraport intervene amplify-head --fact": ["--factor"],
    # Nothing of ours: the shell completes files.
    "loraport inspect sty": [],
    "loraport transfer --source sty": [],
    "loraport transfer -o ": [],
    "loraport compare --prompts ": [],
    "loraport transfer style.safetensors --rank ": [],
}


def _told(lines: list[str], **env: str) -> list[tuple[int, list[str], list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, ",".join(HEAVY)], input=json.dumps(lines), capture_output=True, text=True,
        encoding="utf-8", check=True, env={**os.environ, **env},
    )  # fmt: skip
    return [(code, words, loaded) for code, words, loaded in json.loads(done.stdout)]


def test_names_are_completed_without_torch():
    lines = [*COMPLETED, "loraport verify --for "]
    *told, (_, programs, _) = _told(lines)
    for (line, wanted), (code, words, loaded) in zip(COMPLETED.items(), told, strict=True):
        assert (code, sorted(words), loaded) == (0, sorted(wanted), []), line
    assert {"ComfyUI", "diffusers", "FastVideo"} < set(programs)
    assert not {"0.2.1", "CASA's"} & set(programs)  # names that would have to be quoted are left out


def test_what_is_wrong_with_the_machine_is_not_said_at_a_tab(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text("name: [", encoding="utf-8")
    assert _told(["loraport plan --architecture "], LORAPORT_FAMILIES=str(own)) == [(0, [], [])]


@pytest.mark.parametrize(
    ("shell", "between", "env"),
    [
        ("fish", "\t", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
        ("powershell", ":::", {"_TYPER_COMPLETE_WORD_TO_COMPLETE": ""}),
    ],
)
def test_each_line_that_a_shell_gets_is_a_name(shell: str, between: str, env: dict[str, str]):
    asked = {"_LORAPORT_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "loraport transfer --method ", **env}
    done = subprocess.run(
        [sys.executable, "-m", "loraport"], capture_output=True, text=True, encoding="utf-8", check=True,
        env={**os.environ, "COLUMNS": "80", **asked},
    )  # fmt: skip
    assert dict(line.split(between) for line in done.stdout.splitlines()) == loraport.list_methods()


def _needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None or os.name == "nt", reason=f"there is no {shell}")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A new user's environment, with the program and two files at home."""
    program = tmp_path / "bin" / "loraport"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m loraport \"$@\"\n", encoding="utf-8")
    program.chmod(0o755)
    for name in ("style.safetensors", "my style.safetensors"):
        (tmp_path / name).touch()
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb", "PS1": "> ",
        "PYTHONPATH": str(Path(loraport.__file__).parents[1]), "LORAPORT_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip


@pytest.mark.parametrize("shell", [pytest.param(name, marks=_needs(name)) for name in ("bash", "zsh")])
def test_a_real_shell_completes_names_and_files(shell: str, home: dict[str, str]):
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [shell, "-i"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=home["HOME"], env=home, start_new_session=True
    )
    os.close(theirs)
    try:
        _typed(ours, "loraport --install-completion\n", f"{shell} completes loraport")
        _typed(ours, f"exec {shell} -i\n", "")
        _typed(ours, "PS1='> '; echo rea''dy\n", "ready")
        _typed(ours, "loraport tr\t", "ansfer")
        _typed(ours, "\x15loraport convert x --to ko\t", "hya")
        _typed(ours, "\x15loraport transfer --method=matched\t", "matched-gain")
        _typed(ours, "\x15loraport inspect --model sty\t", "style.safetensors")
        _typed(ours, "\x15loraport transfer --source=my\t", "--source=my\\ style.safetensors")
        _typed(ours, "\x15exit\n", "exit")
    finally:
        os.close(ours)
        process.terminate()
        process.wait()


@_needs("fish")
def test_fish_completes_names_and_files(home: dict[str, str]):
    def run(command: str) -> str:
        return subprocess.run(
            ["fish", "-c", command], capture_output=True, text=True, encoding="utf-8", check=True, env=home,
            cwd=home["HOME"],
        ).stdout  # fmt: skip

    assert "fish completes loraport" in run("loraport --install-completion")
    wanted = {
        "loraport tr": ["transfer"],
        "loraport convert x --to ko": ["kohya"],
        "loraport transfer --method ma": ["masked-restore", "matched-gain"],
        "loraport transfer --method=mat": ["--method=matched-gain"],
        "loraport inspect sty": ["style.safetensors"],
        "loraport transfer --source=my": ["--source=my style.safetensors"],
    }
    told = run("; echo; ".join(f"complete -C '{line}'" for line in wanted))
    found = [[line.split("\t")[0] for line in part.splitlines()] for part in told.split("\n\n")]
    assert dict(zip(wanted, found, strict=True)) == wanted


def _typed(terminal: int, text: str, wanted: str) -> None:
    """Type it, and wait until the terminal shows what is wanted."""
    os.write(terminal, text.encode())
    shown, until = "", time.monotonic() + 120
    while wanted not in shown:
        assert time.monotonic() < until, shown
        shown += os.read(terminal, 4096).decode("utf-8", "replace")
