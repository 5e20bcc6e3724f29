"""The program itself: help, version, messages, exit codes. No models needed."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from loraport.cli import guard, start, text
from loraport.cli.console import Console
from loraport.cli.later import Later, loaded
from loraport.cli.main import app
from loraport.errors import FileError, LoraportError, MismatchError, UsageError
from loraport.settings import parse_size
from loraport.wording import size

FLAGS = (
    *(
        "--source",
        "--target",
        "--target-lora",
        "--rank",
        "--amount",
        "--set",
        "--preset",
        "--layers",
        "--to",
        "--dtype",
        "--expert",
        "--adapter",
        "--drop",
    ),
    *("--device", "--workers", "--executor", "--max-memory", "--cache", "--allow-partial", "--force", "--overwrite"),
    *("--verbose", "--quiet", "--json", "--output"),
)
COMMANDS = (
    "transfer",
    "plan",
    "sweep",
    "check",
    "inspect",
    "convert",
    "resize",
    "extract",
    "analyze",
    "compare",
    "probe",
    "intervene",
    "merge",
    "verify",
    "cache",
    "methods",
    "demo",
)


def invoke(*words: str):
    return CliRunner().invoke(app, list(words), prog_name="loraport")


def loraport(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "from loraport.cli.main import run; run()", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",  # of an odd locale
        check=False,
        **options,
    )


def test_version_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['loraport', {word!r}]\nfrom loraport.cli.main import run\n"
        "try: run()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "heavy = ('torch', 'numpy', 'diffusers', 'matplotlib', 'safetensors')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    for word in ("--version", "--help"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(word=word)], capture_output=True, text=True, encoding="utf-8", check=True
        )
        assert done.stderr.strip() == "[]"
        assert "loraport" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_listed_and_explains_itself_with_an_example(command: str) -> None:
    assert f" {command} " in invoke("--help").output
    page = invoke(command, "--help")
    assert page.exit_code == 0
    assert f"loraport {command}" in page.output.split("╰")[-1], "the epilog has no example"
    assert "<bool>" not in page.output


@pytest.mark.parametrize("command", get_command(app).commands.values(), ids=lambda command: command.name)
def test_what_the_list_says_of_a_command_is_what_it_says_of_itself(command: Later) -> None:
    said = loaded(command.name).help.partition("\n\n")[0]
    assert command.help == " ".join(said.split())


@pytest.mark.parametrize("command", ["transfer", "plan"])
def test_the_shared_options_are_all_there_and_in_groups(command: str) -> None:
    page = CliRunner(env={"COLUMNS": "160"}).invoke(app, [command, "--help"]).output
    for flag in FLAGS:
        assert f"{flag} " in page, flag
    for panel in ("Models", "LoRA", "Method", "Output", "Machine", "Messages"):
        assert f"─ {panel} ─" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["transfer", "-o", "o"], "no LoRA is given"),
        (["transfer", "x.safetensors", "--fource"], "--force"),
        (["nonsense"], "nonsense"),
        (["style.safetensors"], "loraport inspect style.safetensors describes it"),
        (["transfer", "x", "--source"], "loraport transfer --help"),
        (["merge", "x", "-o", "o"], "--into MODEL: Checkpoint to merge into."),
        (["convert", "x"], "--output FILE: File to write."),
        (["calibrate", "-s", "a", "-t", "b", "-o", "o"], "no LoRA is given"),
        (["transfer", "x", "-s", "a", "-t", "b"], "output is not given"),
        (["transfer", "x", "-t", "b", "-o", "o"], "source is not given"),
        (["transfer", "x", "-s", "a", "-o", "o"], "target is not given"),
        (["transfer", "x", "-s", "a", "--target-lora", "c", "--target-lora", "c:2", "-o", "o"], "given twice"),
        (["transfer", "x", "-s", "a", "--target-lora", "c.pt=0.5", "-o", "o"], "write c.pt:0.5"),
        (["transfer", "x", "-s", "a", "--target-lora", "c:expert=middle", "-o", "o"], "high, low"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--rank", "many"], "many"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--rank", "energy=2"], "energy=2"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--amount", "1.5"], "amount"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--layers", "("], "regular expression"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--dtype", "fp7"], "dtype"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--workers", "0"], "(--workers): it must be 1 or more"),
        (
            ["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--workers", "two"],
            "(--workers): it must be a whole",
        ),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--strength", "big"], "(--strength): it must be a number"),
        (
            ["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--executor", "magic"],
            "use one of process, ray, serial, thread",
        ),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--max-memory", "lots"], "--max-memory"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--set", "q_dom"], "--set q_dom"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--preset", "paper"], "released-code"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--preset", "casa", "--method", "direct"], "belongs to"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "-q", "-v"], "contradict"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--method", "cassa"], "did you mean 'casa'"),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--set", "direct.strength=1"], "--method direct"),
        (
            ["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "-m", "casa", "--set", "casa.q_dum=1"],
            "did you mean 'q_dom'",
        ),
        (["transfer", "x", "-s", "a", "-t", "b", "-o", "o", "-m", "casa", "--set", "casa.q_dom=high"], "q_dom"),
        (["methods", "dirct"], "did you mean 'direct'"),
        (["cache", "gc", "--max-size", "-1"], "--max-size"),
        (["cache", "gc", "--older-than", "long"], "--older-than"),
        (["cache", "ls", "--cache", "off"], "no cache"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_in_the_command_is_one_message_and_code_2(words: list[str], says: str) -> None:
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert says.lower() in done.stderr.lower()
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.output


def test_errors_as_json_keep_their_code() -> None:
    done = invoke("transfer", "x", "-s", "a", "-t", "b", "-o", "o", "--rank", "many", "--json")
    assert done.exit_code == 2
    assert done.stderr == ""
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "UsageError"
    assert error["exit_code"] == 2
    assert error["values"] == "many"
    done = invoke("transfer", "x", "--json", "--nonsense")
    assert (done.exit_code, json.loads(done.stdout)["error"]["exit_code"]) == (2, 2)


def test_a_command_alone_shows_the_help() -> None:
    done = invoke()
    assert done.exit_code == 2
    assert "transfer" in done.output
    assert "error:" not in done.output


@pytest.mark.parametrize("error", [UsageError, MismatchError, FileError])
def test_our_errors_give_their_own_code(error: type[LoraportError], capsys: pytest.CaptureFixture) -> None:
    def command() -> None:
        raise error("it broke", where="blocks.0", values="3 of 4", fix="mend it")

    assert guard.guarded(command, as_json=False, verbose=False) == error.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: it broke\n  where: blocks.0\n  found: 3 of 4\n  try:   mend it\n"


def test_a_bug_asks_for_a_report(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def command() -> None:
        raise ZeroDivisionError("division by zero")

    assert guard.guarded(command, as_json=False, verbose=False) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "report" in shown
    assert "ZeroDivisionError" in shown
    (kept,) = tmp_path.iterdir()
    assert str(kept) in shown
    assert "Traceback" in kept.read_text(encoding="utf-8")
    assert guard.guarded(command, as_json=False, verbose=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_out_of_memory_is_not_a_bug(capsys: pytest.CaptureFixture) -> None:
    def command() -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 10 bytes.")

    assert guard.guarded(command, as_json=False, verbose=False) == 5
    assert "--max-memory" in capsys.readouterr().err


def test_a_limit_on_threads_is_not_a_bug(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **named: object) -> None:
        raise RuntimeError("can't start new thread")  # as Python says it, where a container has a limit

    def command() -> None:
        threading.Thread(target=print).start()

    old, new = "_start_new_thread", "_start_joinable_thread"  # of Python before 3.13, and since
    monkeypatch.setattr(threading, new if hasattr(threading, new) else old, refused)
    assert guard.guarded(command, as_json=False, verbose=False) == 5
    assert "the limit on processes" in capsys.readouterr().err


LAZY = """def __getattr__(name):
    try:
        import sentence_of_nobody
    except ImportError as error:
        raise RuntimeError(f"Failed to import diffusers.{name} because of the following error:\\n{error}") from error
"""


@pytest.mark.parametrize("package", [LAZY, "import sentence_of_nobody"], ids=["as diffusers says it", "plain"])
def test_a_package_that_cannot_be_imported_is_not_a_bug(package: str, tmp_path: Path) -> None:
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "__init__.py").write_text(package, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "loraport", "evaluate", "-o", str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 2, done.stderr
    assert "error: a package that this needs cannot be imported" in done.stderr
    assert "found: No module named 'sentence_of_nobody'" in done.stderr
    assert "pip install" in done.stderr


def test_a_missing_part_of_our_own_is_a_bug(capsys: pytest.CaptureFixture) -> None:
    assert guard.guarded(lambda: importlib.import_module("loraport.nowhere"), as_json=False, verbose=True) == 1
    assert "fault of this program" in capsys.readouterr().err


def test_methods() -> None:
    page = invoke("methods").stdout
    for name in ("casa", "direct", "released-code"):
        assert name in page
    assert "casa.q_dom" in invoke("methods", "casa").stdout
    facts = json.loads(invoke("methods", "--json").stdout)
    assert {"casa", "direct"} <= {method["name"] for method in facts["methods"]}
    assert json.loads(invoke("methods", "released-code", "--json").stdout)["values"]["complete_basis"] is True


def test_quiet_says_nothing() -> None:
    done = invoke("methods", "-q")
    assert (done.exit_code, done.output) == (0, "")


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("16GB", 16 * 10**9),
        ("500 MB", 5 * 10**8),
        ("2GiB", 2**31),
        ("1.5g", 15 * 10**8),
        ("4096", 4096),
        ("3kib", 3072),
    ],
)
def test_sizes(written: str, size: int) -> None:
    assert parse_size(written, name="x") == size


@pytest.mark.parametrize("written", ["", "GB", "-1GB", "0", "1 XB", "ten"])
def test_sizes_that_are_none(written: str) -> None:
    with pytest.raises(UsageError):
        parse_size(written, name="x")


def test_errors_that_say_the_same_are_one_message(capsys: pytest.CaptureFixture) -> None:
    errors: list[LoraportError] = [
        MismatchError("for another model", where=f"{name}.safetensors", values=f"layer {name}", fix="give another")
        for name in ("a", "b", "b")
    ]
    Console().errors([*errors, FileError("the file is empty", where="c.safetensors")])
    assert capsys.readouterr().err.splitlines() == [
        *("error: for another model", "  where: a.safetensors, b.safetensors"),
        *("  found: layer a (in the first)", "  try:   give another"),
        *("error: the file is empty", "  where: c.safetensors"),
    ]


def test_a_reason_that_is_too_long_for_a_cell_ends_at_its_end() -> None:
    error = MismatchError("This LoRA is for FLUX.", values="18 keys, e.g. " + 100 * "x")
    assert text.reason(error) == "This LoRA is for FLUX"
    assert text.reason(MismatchError("it is cut.", values="3 of 9")) == "it is cut: 3 of 9"


def test_durations_and_sizes() -> None:
    assert text.parse_duration("30d", name="x") == 30 * 86400
    assert text.duration(3725) == "1 h 2 min"
    assert size(1_500_000_000) == "1.5 GB"


def test_the_console_refuses_contradictions() -> None:
    with pytest.raises(UsageError):
        Console(verbose=1, quiet=True)


@pytest.mark.skipif(os.name == "nt", reason="no such shell")
@pytest.mark.parametrize("words", ["methods", "--help"])
def test_a_closed_pipe_is_no_crash_and_no_bug(words: str) -> None:
    begin = "import time; time.sleep(0.2); from loraport.cli.main import run; run()"
    done = subprocess.run(
        f"{{ {sys.executable} -c '{begin}' {words}; echo $? >&2; }} | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.split() == [str(128 + signal.SIGPIPE)]


@pytest.mark.skipif(os.name == "nt", reason="no such shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed_from_the_start_are_no_bug(closed: str) -> None:
    for words, code in (("methods casa", 0), ("inspect missing.safetensors --json", 5)):
        line = f'"{sys.executable}" -m loraport {words} {closed}'
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "fault" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_a_real_process_with_an_odd_locale(tmp_path: Path) -> None:
    done = loraport("inspect", "größe 日本.safetensors", cwd=tmp_path, env={"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


def test_a_wide_table_shows_the_columns_that_fit_and_names_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    columns = ["layer", "energy kept", *(f"figure {number}" for number in range(9))]
    Console().table(columns, [["blocks.0.self_attn.q", "91.9 %", *["0.5"] * 9]], fixed=1)
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "blocks.0.self_attn.q" in said
    assert "91.9 %" in said
    assert "no room for figure" in said
    assert max(map(len, said.split("no room")[0].splitlines())) <= 40


@pytest.mark.parametrize(("own", "then"), [(None, "1"), ("0", "0")])
def test_torch_is_told_to_use_large_pages_unless_the_user_says_otherwise(monkeypatch, own, then):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "to be taken back")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    if own is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", own)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    told = []
    monkeypatch.setattr("loraport.cli.main.run", lambda: told.append(os.environ["THP_MEM_ALLOC_ENABLE"]))
    start.run()
    assert told == [then]
