"""`transfer` and `plan` for both experts of Wan2.2 at once."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pico
from loraport.cli.main import app


def invoke(*words: object):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words], prog_name="loraport")


@pytest.fixture
def pair(files: pico.Pico) -> list[object]:
    """The words for two models of two experts each."""
    low = pico.distilled(load_file(files.source), 5, 0.5)
    for role, tensors in (("source", low), ("target", pico.distilled(low, 6))):
        (files.folder / role / "transformer").mkdir(parents=True)
        (files.folder / role / "transformer_2").mkdir()
        getattr(files, role).rename(files.folder / role / "transformer" / "model.safetensors")
        save_file(tensors, files.folder / role / "transformer_2" / "model.safetensors")
    return ["--source", files.folder / "source", "--target", files.folder / "target", "--method", "matched-gain"]


def combined(lora: Path) -> None:
    """Make a plain LoRA one of both experts."""
    names = ("transformer_1.", "transformer_2.")
    tensors = {
        key.replace("diffusion_model.", f"diffusion_model.{name}"): tensor.clone()
        for key, tensor in load_file(lora).items()
        for name in names
    }
    save_file(tensors, lora)


def test_a_lora_and_folders_with_both_are_one_job(files: pico.Pico, pair: list[object]) -> None:
    combined(files.lora)
    made = files.folder / "made"
    done = invoke(
        "transfer",
        files.lora,
        *pair,
        "-o",
        made / "out.safetensors",
        "--report",
        made / "page.html",
        "--card",
        made / "card.md",
    )
    assert done.exit_code == 0, done.output
    for text in (
        "high-noise expert",
        "low-noise expert",
        "both experts",
        "0.200 of the source's norm, high source, high",
    ):
        assert text in done.stdout
    assert "load_into_transformer_2=True" in done.stdout
    names = [path.name for path in sorted(made.iterdir())]
    stems = [f"out_{expert}_noise" for expert in ("high", "low")]
    pages = [name for expert in ("high", "low") for name in (f"page_{expert}_noise.html", f"card_{expert}_noise.md")]
    for expert in ("high", "low"):
        assert f"out_{expert}_noise.safetensors" in (made / f"card_{expert}_noise.md").read_text(encoding="utf-8")
    assert names == sorted([f"{s}.safetensors" for s in stems] + [f"{s}.run.jsonl" for s in stems] + pages)
    again = invoke("transfer", files.lora, *pair, "-o", made / "out.safetensors", "--overwrite", "--json")
    facts = json.loads(again.stdout)
    assert [one["summary"]["cached_layers"] for one in facts["experts"].values()] == [20, 20]


@pytest.mark.parametrize("flag", ["--report", "--card", "--log"])
def test_what_is_written_of_each_expert_needs_a_name(files: pico.Pico, pair: list[object], flag: str) -> None:
    combined(files.lora)
    done = invoke("transfer", files.lora, *pair, "-o", files.folder / "out.safetensors", flag, "")
    assert done.exit_code == 2
    assert "name a file" in done.stderr


def test_a_plan_of_both(files: pico.Pico, pair: list[object]) -> None:
    done = invoke("plan", files.lora, *pair, "--expert", "both")
    assert done.exit_code == 0, done.output
    assert "both experts" in done.stdout
    assert "used for both experts" in done.stderr
    facts = json.loads(invoke("plan", files.lora, *pair, "--expert", "both", "--json").stdout)
    high, low = (one["cost"] for one in facts["experts"].values())
    assert facts["cost"]["output_bytes"] == high["output_bytes"] + low["output_bytes"]
    assert low["busy_seconds"] < high["busy_seconds"] - 1  # the program starts once, with torch
    assert facts["cost"]["peak_bytes"] == max(high["peak_bytes"], low["peak_bytes"])


def test_what_is_not_said_is_asked_for(files: pico.Pico, pair: list[object]) -> None:
    refused = invoke("plan", files.lora, *pair)
    assert refused.exit_code == 2
    assert "--expert both" in refused.stderr
    assert "transformer_2" in invoke("plan", files.lora, *pair, "--expert", "low").stdout
    contradiction = invoke("plan", files.lora, *pair, "--expert", "low", "--lora-low", files.lora)
    assert contradiction.exit_code == 2
    assert "one expert is chosen" in contradiction.stderr


def test_a_model_to_check_against_is_that_of_the_expert(files: pico.Pico, pair: list[object]) -> None:
    folder = files.folder / "source"
    for old, new in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        (folder / old).rename(folder / new)
    assert invoke("verify", files.lora, "--no-load", "--model", folder).exit_code == 2
    assert invoke("verify", files.lora, "--no-load", "--model", folder, "--expert", "low").exit_code == 0
    output = files.folder / "renamed.safetensors"
    done = invoke("convert", files.lora, "-o", output, "--model", folder, "--expert", "high")
    assert done.exit_code == 0, done.output


def test_several_loras_and_a_recipe_file(files: pico.Pico, pair: list[object]) -> None:
    combined(files.lora)
    second = files.folder / "second.safetensors"
    second.write_bytes(files.lora.read_bytes())
    words = ["transfer", files.lora, second, *pair, "--method", "direct", "-o", files.folder / "many"]
    done = invoke(*words, "--json", "-v")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["failed"] == 0
    assert len(list((files.folder / "many").glob("*_noise.safetensors"))) == 4
    refused = invoke("transfer", files.lora, second, *pair, "--lora-low", second, "-o", files.folder / "many")
    assert refused.exit_code == 2
    recipe = files.folder / "pair.yaml"
    recipe.write_text(
        "lora: style.safetensors\nsource: source\ntarget: target\nexpert: both\nlora_low: second.safetensors\n"
    )
    facts = json.loads(invoke("plan", "--recipe", recipe, "--json").stdout)
    assert facts["experts"]["low"]["lora"] == str(second)


def test_a_pair_in_a_folder_is_carried_over_once(files: pico.Pico, pair: list[object]) -> None:
    folder = files.folder / "loras"
    folder.mkdir()
    for expert in ("high", "low"):
        (folder / f"style_{expert}_noise.safetensors").write_bytes(files.lora.read_bytes())
    words = ["transfer", folder, *pair, "--method", "direct", "--expert", "both", "-o", files.folder / "made"]
    facts = json.loads(invoke(*words, "--json").stdout)
    assert (len(facts["reports"]), facts["failed"], facts["skipped"]) == (2, 0, 1)
    assert len(list((files.folder / "made").glob("*.safetensors"))) == 2


def test_what_is_wrong_with_one_lora_does_not_stop_the_plan_of_the_others(files: pico.Pico, pair: list[object]) -> None:
    """As it does not stop their transfer: whether a LoRA holds both experts its own file says, which may be damaged."""
    folder = files.folder / "loras"
    folder.mkdir()
    combined(files.lora)
    files.lora.rename(folder / "both.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"no LoRA")
    done = invoke("plan", folder, *pair, "-o", files.folder / "made", "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 5, done.output
    assert [sorted(each) for each in facts["plans"]] == [["cost", "experts", "warnings"], ["error", "lora"]]
    assert facts["failed"] == 1
    told = invoke("plan", folder, *pair, "-o", files.folder / "made")
    assert told.exit_code == 5
    assert "both experts" in told.stdout
    assert "damaged.safetensors" in told.stderr
