"""Ctrl-C and the other signals that end the program: one message, the right code, nothing left taken."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from loraport.cli import guard


def test_interrupted_says_how_to_resume(capsys: pytest.CaptureFixture) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    assert guard.guarded(command, as_json=False, verbose=False) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="nobody is told to end by a signal there")
def test_a_signal_that_a_library_takes_for_its_own_trouble_is_no_bug(capsys: pytest.CaptureFixture) -> None:
    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

    assert guard.guarded(command, as_json=False, verbose=False) == 128 + signal.SIGTERM
    assert "run the same command again to resume" in capsys.readouterr().err


SWALLOWED = {
    "for good": "try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: pass",
    "for another error": "try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: raise ImportError('no')",
    "not at all": "signal.raise_signal(signal.SIGINT)",
}


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger has the means by which it is raised again")
@pytest.mark.parametrize("how", SWALLOWED)
def test_ctrl_c_that_a_library_swallows_ends_the_next_line_of_ours(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "swallowing.py").write_text(f"import signal\n{SWALLOWED[how]}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "swallowing", raising=False)
    ours = {"__name__": "loraport.somewhere", "done": []}
    body = """
def command():
    try:
        try:
            import swallowing
        except ImportError:
            pass
        done.append("work")
    finally:
        done.append("cleaned")
        done.append("up")
"""
    exec(body, ours)
    assert guard.guarded(ours["command"], as_json=False, verbose=False) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert ours["done"] == ["cleaned", "up"]
    assert sys.gettrace() is None


@pytest.mark.skipif(os.name == "nt", reason="nobody is told to end by a signal there")
@pytest.mark.parametrize("names", [("SIGTERM",), ("SIGTERM", "SIGINT")])
def test_a_signal_leaves_no_lock_taken(names: tuple[str, ...]) -> None:
    """The one that a future is changed under: a worker thread would wait for it, and the program for the thread."""
    left: list[object] = []
    condition = threading.Condition()
    signals = map(signal.raise_signal, (getattr(signal, name) for name in names))
    condition._lock = SimpleNamespace(  # they come when the lock has just been taken, inside Condition.__enter__
        __enter__=partial(list, signals), __exit__=lambda *error: left.append(error)
    )
    ours = {"__name__": "loraport.somewhere", "condition": condition, "done": []}
    exec("def command():\n    with condition:\n        done.append('held')\n    done.append('work')\n", ours)
    assert guard.guarded(ours["command"], as_json=False, verbose=False) == 143
    assert ours["done"] == []
    assert len(left) == 1  # given back
    assert sys.gettrace() is None


@pytest.mark.skipif(os.name == "nt", reason="nobody is told to end by a signal there")
def test_a_signal_does_not_come_between_a_process_and_what_it_is_told() -> None:
    """A worker that was just begun would say that it understands nothing, or be known to nobody and waited for."""
    done: list[str] = []
    python = {"__name__": "multiprocessing.util", "begin": partial(signal.raise_signal, signal.SIGTERM), "done": done}
    exec("def spawn():\n    begin()\n    done.append('told')\n", python)
    ours = {"__name__": "loraport.somewhere", "spawn": python["spawn"], "done": done}
    exec("def command():\n    spawn()\n    done.append('work')\n", ours)
    assert guard.guarded(ours["command"], as_json=False, verbose=False) == 143
    assert done == ["told"]


def test_ctrl_c_while_an_object_goes_is_no_traceback(capsys: pytest.CaptureFixture) -> None:
    """As a second one comes while the workers of the first are waited for, in a generator that nobody needs now."""

    def layers():
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)

    done = []
    ours = {"__name__": "loraport.somewhere", "layers": layers, "done": done}
    exec("def command():\n    for each in layers():\n        break\n    done.append('work')\n", ours)
    hook = sys.unraisablehook
    assert guard.guarded(ours["command"], as_json=False, verbose=False) == 130
    assert done == []
    assert capsys.readouterr().err.startswith("error: interrupted")
    assert sys.unraisablehook is hook


@pytest.mark.skipif(os.name == "nt", reason="nobody is told to end by a signal there")
@pytest.mark.parametrize("second", ["SIGINT", "SIGHUP", "SIGTERM"])
def test_a_second_signal_ends_the_cleaning_up(second: str, capsys: pytest.CaptureFixture) -> None:
    done = []

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            done.append("begun")
            signal.raise_signal(getattr(signal, second))
            done.append("ended")

    assert guard.guarded(command, as_json=False, verbose=False) == 128 + signal.SIGTERM
    assert done == (["begun", "ended"] if second == "SIGTERM" else ["begun"])  # the same at once is the same wish
    assert "run the same command again to resume" in capsys.readouterr().err


def test_a_second_signal_while_the_first_is_told_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(console, error) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("loraport.cli.console.Console.error", error)
    assert guard.guarded(lambda: signal.raise_signal(signal.SIGINT), as_json=False, verbose=False) == 130


@pytest.mark.skipif(os.name == "nt", reason="a process that Ctrl-C ends has a number of its own there")
def test_ctrl_c_before_the_program_is_loaded_ends_it_without_a_word() -> None:
    code = (
        "import signal, sys\n"
        "class Early:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Early())\n"
        "from loraport.cli.start import run; run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.skipif(os.name == "nt", reason="a process that Ctrl-C ends has a number of its own there")
def test_ctrl_c_when_all_is_done_ends_the_program_without_a_word() -> None:
    code = (
        "import atexit, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "sys.argv[1:] = ['--version']\n"
        "from loraport.cli.start import run; run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:9], done.stderr) == (-signal.SIGINT, "loraport ", "")
