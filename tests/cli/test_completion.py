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


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="there is no bash")
def test_a_real_shell_completes_names_and_files(tmp_path: Path):
    import pty

    program = tmp_path / "bin" / "loraport"
    program.parent.mkdir()
    program.write_text(
        f"#!{shutil.which('bash')}\nexec '{sys.executable}' -c 'from loraport.cli.main import run; run()' \"$@\"\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    (tmp_path / "style.safetensors").touch()
    env = {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb", "PS1": "> ",
        "PYTHONPATH": str(Path(loraport.__file__).parents[1]), "LORAPORT_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=env,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        _typed(ours, "loraport --install-completion\n", "bash completion installed")
        _typed(ours, "source ~/.bashrc\n", "")
        _typed(ours, "loraport transfer --method matched\t", "matched-gain")
        _typed(ours, "\x15loraport inspect sty\t", "inspect style.safetensors")
        _typed(ours, "\x15exit\n", "exit")
    finally:
        os.close(ours)
        shell.terminate()
        shell.wait()


def _typed(terminal: int, text: str, wanted: str) -> None:
    """Type it, and wait until the terminal shows what is wanted."""
    os.write(terminal, text.encode())
    shown, until = "", time.monotonic() + 120
    while wanted not in shown:
        assert time.monotonic() < until, shown
        shown += os.read(terminal, 4096).decode("utf-8", "replace")
