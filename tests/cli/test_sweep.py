"""`loraport sweep`: a table, an index, an exit code; settings from flags and from a file."""

import json
import re

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

import pico
from loraport.cli.main import app

FEW = {name: pico.LAYERS[name] for name in ("blocks.0.self_attn.q", "blocks.1.ffn.0")}


def invoke(*words: object):
    return CliRunner(env={"COLUMNS": "250"}).invoke(app, [str(word) for word in words], prog_name="loraport")


@pytest.fixture
def files(files: pico.Pico) -> pico.Pico:
    folder = files.folder / "loras"
    folder.mkdir()
    for number, name in enumerate(("style", "motion")):
        save_file(pico.lora(number, layers=FEW), folder / f"{name}.safetensors")
    save_file(pico.lora(7, rank=2), files.folder / "few.safetensors")
    return files


def words(files: pico.Pico, *more: object) -> list[object]:
    return [
        "sweep", files.folder / "loras", "-s", files.source, "-t", files.target, "-o", files.folder / "made",
        "--cache", "off", "--log", "off", *more,
    ]  # fmt: skip


def outcomes(stdout: str) -> dict[tuple[str, str], str]:
    rows = re.findall(r"^ *(\S+)\.safetensors +target +(.*?) +(done already|done|kept|failed|to do) ", stdout, re.M)
    return {(name, settings): outcome for name, settings, outcome in rows}


def test_a_row_for_each_cell_and_the_code_of_the_first_failure(files):
    (files.folder / "loras" / "junk.safetensors").write_bytes(b"junk")
    more = ["--method", "direct", "--rank", "8", "--rank", "12"]
    done = invoke(*words(files, *more))
    assert done.exit_code == 5
    good = {(name, f"rank={rank}"): "done" for name in ("motion", "style") for rank in (8, 12)}
    bad = {("junk", f"rank={rank}"): "failed" for rank in (8, 12)}
    assert outcomes(done.stdout) == good | bad
    assert done.stderr.count("error: ") == 1
    plan = invoke(*words(files, *more, "--rank", "16", "--plan"))  # what is there, what is to be made, what will not be
    states = dict.fromkeys(good, "done already") | {(name, "rank=16"): "to do" for name in ("motion", "style")}
    assert (plan.exit_code, outcomes(plan.stdout)) == (5, states)
    assert "2 cells to do in one job, 4 already done" in plan.stdout
    cells = json.loads(invoke(*words(files, *more, "--rank", "16", "--plan", "--json")).stdout)["cells"]
    assert sorted(cell["lora"].rpartition("/")[2] for cell in cells if "error" in cell) == ["junk.safetensors"] * 3
    assert sum(cell.get("done", False) for cell in cells) == 4
    (files.folder / "loras" / "junk.safetensors").unlink()
    again = invoke(*words(files, *more, "--json"))
    facts = json.loads(again.stdout)
    assert (again.exit_code, facts["done"], facts["kept"], facts["failed"]) == (0, 4, 4, 0)
    assert facts["cells"][0]["name"] == "target/rank=8/motion"
    assert set(outcomes(invoke(*words(files, *more)).stdout).values()) == {"kept"}


def test_a_plan_changes_nothing(files):
    more = ["--method", "direct", "--method", "casa", "--set", "casa.q_dom=0.4", "--set", "casa.q_dom=0.6", "--plan"]
    before = sorted(files.folder.rglob("*"))
    done = invoke(*words(files, *more))
    assert (done.exit_code, sorted(files.folder.rglob("*"))) == (0, before), done.output
    settings = ("direct", "casa, q_dom=0.4", "casa, q_dom=0.6")
    assert outcomes(done.stdout) == {(name, each): "to do" for name in ("motion", "style") for each in settings}
    assert "6 cells to do in one job" in done.stdout
    facts = json.loads(invoke(*words(files, *more, "--json")).stdout)
    assert facts["cost"]["output_bytes"] == sum(cell["output_bytes"] for cell in facts["cells"])


def test_a_file_says_the_same_as_flags(files):
    grid = files.folder / "grid.yaml"
    grid.write_text(
        "lora: loras/*.safetensors\nsource: source.safetensors\nrank: [8, 12]\n"
        "target:\n  - target.safetensors\n  - source.safetensors + few.safetensors:0.5\n"
        "  - {name: few, target_lora: [{file: few.safetensors, strength: 2}]}\n"
        "settings:\n  - method: direct\n  - {method: casa, params: {q_dom: [0.4, 0.6]}}\n",
        encoding="utf-8",
    )
    done = invoke("sweep", "--grid", grid, "-o", files.folder / "made", "--plan", "--json")
    assert done.exit_code == 0, done.output
    cells = json.loads(done.stdout)["cells"]
    assert len(cells) == 2 * 3 * 2 * 3
    assert {cell["target"] for cell in cells} == {"target", "source+few@0.5", "few"}
    assert all(cell["lora"].startswith(str(files.folder)) for cell in cells)
    flags = ["--rank", "16", "-t", files.target, files.folder / "loras" / "style.safetensors", "--method", "direct"]
    done = invoke(
        "sweep", "--grid", grid, "-o", files.folder / "made", "--plan", "--json", *flags, "--set", "strength=1"
    )
    assert done.exit_code == 2  # q_dom is no setting of direct
    done = invoke("sweep", "--grid", grid, "-o", files.folder / "made", "--plan", "--json", *flags[:-2])
    names = [cell["name"] for cell in json.loads(done.stdout)["cells"]]
    assert names == [f"target/{each}/style" for each in ("direct", "casa,q_dom=0.4", "casa,q_dom=0.6")]


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ("", "not a list of settings"),
        ("rank: [8\n", "not valid YAML"),
        ("ranks: [8]\n", "did you mean 'rank'?"),
        ("rank: []\n", "an empty list"),
        ("settings: [{ranks: 8}]\n", "in settings"),
        ("target: [{model: x}]\n", "in target"),
        ("device: cpu\n", "does not belong in a grid"),
        ("amount: [a]\n", "amount"),
        ("lora: [3]\n", "a LoRA must be named"),
        ("params: 3\n", "by name"),
    ],
)
def test_a_file_that_is_wrong(files, grid, says):
    path = files.folder / "grid.yaml"
    path.write_text(grid, encoding="utf-8")
    done = invoke("sweep", files.lora, "--grid", path, "-o", files.folder / "made", "-s", files.source)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not (files.folder / "made").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["sweep", "x.pt", "-s", "a", "-t", "b"], "output is not given"),
        (["sweep", "x.pt", "-s", "a", "-o", "o"], "no target is given"),
        (["sweep", "x.pt", "-t", "a", "-o", "o"], "source is not given"),
        (["sweep", "-s", "a", "-t", "b", "-o", "o"], "no LoRA is given"),
        (["sweep", ".", "-s", "a", "-t", "b", "-o", "o"], "holds no LoRA"),
        (["sweep", "x.pt", "-s", "a", "-t", "b", "-o", "o", "--set", "q_dom"], "--set q_dom"),
        (["sweep", "x.pt", "-s", "a", "-t", "b", "-o", "o", "--rank", "8", "--rank", "8"], "8 is given twice"),
        (["sweep", "x.pt", "-s", "a", "-t", "b", "-o", "o", "--log", "file"], "describes one LoRA"),
    ],
)
def test_what_is_missing_is_said(more, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*more)
    assert (done.exit_code, done.stderr.count("error: ")) == (2, 1), done.output
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []
