"""`loraport report`: pages from run logs."""

import json

import pytest
from typer.testing import CliRunner

from loraport.cli.main import app


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def made(files, tmp_path):
    """Two transfers, one of them with its page, and a folder inside."""
    for name in ("one", "more/two"):
        output = tmp_path / "out" / f"{name}.safetensors"
        output.parent.mkdir(parents=True, exist_ok=True)
        words = ["transfer", files.lora, "-s", files.source, "-t", files.target, "--cache", "off", "-o", output]
        done = run(*words, "--report", tmp_path / "own.html") if name == "one" else run(*words)
        assert done.exit_code == 0, done.output
    return tmp_path / "out"


def test_a_page_from_the_log_is_the_page_of_the_run(made, tmp_path):
    done = run("report", made / "one.run.jsonl", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"pages": [str(made / "one.html")]}
    assert (made / "one.html").read_text() == (tmp_path / "own.html").read_text()


def test_of_a_folder_each_log_has_its_page_at_its_place(made, tmp_path):
    assert run("report", made, "-o", tmp_path / "pages/").exit_code == 0
    found = sorted(path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.html"))
    assert found == ["more/two.html", "one.html"]


def test_nothing_is_replaced_and_nothing_is_half_done(made):
    (made / "one.html").write_text("mine")
    done = run("report", made)
    assert done.exit_code == 5
    assert "exists already" in done.output
    assert (made / "one.html").read_text() == "mine"
    assert not (made / "more/two.html").exists()
    assert run("report", made, "--overwrite").exit_code == 0
    assert (made / "one.html").read_text() != "mine"


def test_a_run_that_broke_off_is_drawn_and_said_to_have(made):
    log = made / "one.run.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:20])
    done = run("report", log)
    assert done.exit_code == 0, done.output
    assert "did not come to its end" in done.output
    assert "1 layer" in done.output


@pytest.mark.parametrize(
    ("content", "words", "code", "said"),
    [
        (b"\x80\x81", [], 5, "not a run log"),
        (b'{"a": 1}\n', [], 5, "not a run log"),
        (b"", [], 5, "not a run log"),
        (b"[1]\n", [], 5, "not a run log"),
        (None, [], 5, "cannot be read"),
        (b"", ["-o", "page.htm"], 2, "ends in .html"),
    ],
)
def test_what_is_no_run_log_is_told_in_a_sentence(content, words, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "x.run.jsonl"
    if content is not None:
        log.write_bytes(content)
    done = run("report", log, *words)
    assert done.exit_code == code
    assert said in done.output
    assert sorted(tmp_path.glob("*.htm*")) == []


def test_several_logs_have_no_one_page(made, tmp_path):
    done = run("report", made, "-o", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "folder" in done.output


def test_a_folder_without_logs_is_told(tmp_path):
    done = run("report", tmp_path)
    assert done.exit_code == 2
    assert "no run log" in done.output
