"""`loraport report`: pages from run logs."""

import json
import re
from urllib.parse import unquote

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
    assert "already exists" in done.output
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
    assert "did not finish" in done.output
    assert "1 layer" in done.output


@pytest.mark.parametrize(
    ("content", "words", "code", "said"),
    [
        (b"\x80\x81", [], 5, "not a run log"),
        (b'{"a": 1}\n', [], 5, "not a run log"),
        (b"", [], 5, "not a run log"),
        (b"[1]\n", [], 5, "not a run log"),
        (None, [], 5, "cannot be read"),
        (b"", ["-o", "page.htm"], 2, "must end in .html"),
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


def test_in_place_of_an_output_its_log_is_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x81")
    (tmp_path / "x.run.jsonl").touch()
    done = run("report", tmp_path / "x.safetensors")
    assert done.exit_code == 5
    assert f"give {tmp_path / 'x.run.jsonl'}" in " ".join(done.output.split())


def test_several_logs_have_no_one_page(made, tmp_path):
    done = run("report", made, "-o", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "folder" in done.output


def test_a_folder_without_logs_is_told(tmp_path):
    done = run("report", tmp_path)
    assert done.exit_code == 2
    assert "no run log" in done.output


@pytest.fixture
def swept(files):
    """Two LoRAs by two ranks, of one of which there is an output that is not replaced."""
    folder = files.folder / "swept"
    (folder / "target" / "rank=2").mkdir(parents=True)
    (folder / "target" / "rank=2" / "lora#2.safetensors").write_bytes(b"mine")
    loras = [files.lora, files.folder / "lora#2.safetensors"]
    loras[1].write_bytes(files.lora.read_bytes())

    def sweep(*more):
        words = ["sweep", *loras, "-s", files.source, "-t", files.target, "--method", "direct", "--cache", "off"]
        done = run(*words, "--rank", "2", "--rank", "4", "-o", folder, *more)
        assert done.exit_code == 5, done.output
        return folder

    return sweep


def test_of_a_sweep_there_is_a_page_of_all_cells_that_leads_to_each(swept, tmp_path):
    folder = swept()
    for words, home in (((folder,), folder), ((folder / "sweep.json", "-o", tmp_path / "pages"), tmp_path / "pages")):
        done = run("report", *words, "--json")
        assert done.exit_code == 0, done.output
        assert str(home / "index.html") in json.loads(done.stdout)["pages"]
        page = (home / "index.html").read_text("utf-8")
        links = re.findall(r'<a href="([^"]*)">([^<]*)</a>', page)
        assert [link for link, _ in links] == [
            "target/rank%3D2/style.html", "target/rank%3D4/style.html", "target/rank%3D4/lora%232.html",
        ]  # fmt: skip
        assert all((home / unquote(link)).is_file() for link, _ in links)
        assert [len(re.findall(f">{state}</td>", page)) for state in ("done", "failed", "pending")] == [3, 1, 0]
        assert "the output file already exists" in page
    (folder / "index.html").write_text("mine")
    done = run("report", folder)
    assert (done.exit_code, (folder / "index.html").read_text()) == (5, "mine")


def test_a_sweep_without_logs_or_without_an_end_has_its_page_too(swept):
    folder = swept("--log", "off")
    index = json.loads((folder / "sweep.json").read_text())
    index["cells"][0] |= {"state": "pending", "figures": {}, "sha256": None}
    (folder / "sweep.json").write_text(json.dumps(index))
    done = run("report", folder)
    assert done.exit_code == 0, done.output
    assert [path.name for path in folder.rglob("*.html")] == ["index.html"]
    page = (folder / "index.html").read_text("utf-8")
    assert "1 cell is pending" in page
    assert "<a " not in page
    (folder / "sweep.json").write_text("{}")
    done = run("report", folder, "--overwrite")
    assert done.exit_code == 5
    assert "cannot be understood" in done.output
    assert (folder / "index.html").read_text("utf-8") == page
