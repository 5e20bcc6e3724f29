"""A folder of LoRAs in one command: a row for each file, whatever it is."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pico
from loraport.cli.main import app

TWO = {name: pico.LAYERS[name] for name in ("blocks.0.self_attn.q", "blocks.1.ffn.0")}
NO_LORA = {
    "checkpoint": "this file is a checkpoint",
    "cut": "cut short",
    "deep": "8 blocks",
    "done": "already transferred",
    "empty": "the file is empty",
    "flux": "FLUX",
    "half": "cannot be matched",
    "junk": "damaged",
    "nan": "NaN",
    "text": "nor a torch file",
    "wide": "width 64",
}
"""Files that have no output, with a word of the reason."""


def invoke(*words: object):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words], prog_name="loraport")


def words(files: pico.Pico, command: str, *more: object) -> list[object]:
    return [
        command, files.folder / "mixed", "-s", files.source, "-t", files.target, "-o", files.folder / "made",
        "--method", "direct", "--cache", "off", "--log", "off", "--recursive", *more,
    ]  # fmt: skip


@pytest.fixture
def mixed(files: pico.Pico) -> list[str]:
    """Twenty files: eleven that are no good, one whose output exists, eight LoRAs, one of them further down."""
    folder = files.folder / "mixed"
    (folder / "old").mkdir(parents=True)
    (files.folder / "made").mkdir()
    bad = {name: pico.lora(4, layers=TWO) for name in ("done", "nan", "half")}
    bad["nan"]["diffusion_model.blocks.1.ffn.0.lora_A.weight"][1, 1] = float("nan")
    del bad["half"]["diffusion_model.blocks.1.ffn.0.lora_A.weight"]
    bad["deep"] = pico.lora(4, layers={"blocks.7.self_attn.q": (pico.WIDTH, pico.WIDTH)})
    bad["wide"] = pico.lora(4, width=64, layers=TWO)
    factors = {"lora_down": torch.ones(4, 48), "lora_up": torch.ones(48, 4)}
    bad["flux"] = {f"lora_unet_double_blocks_0_img_attn_proj.{half}.weight": t for half, t in factors.items()}
    for name, tensors in bad.items():
        save_file(tensors, folder / f"{name}.safetensors", {"loraport.recipe": "{}"} if name == "done" else None)
    (folder / "checkpoint.safetensors").write_bytes(files.source.read_bytes())
    (folder / "cut.safetensors").write_bytes(files.lora.read_bytes()[:5000])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "junk.safetensors").write_bytes(b"junk")
    (folder / "text.pt").write_text("not a torch file")
    good = ["old/style", *(f"style {number}" for number in range(7)), "there"]
    for number, name in enumerate(good):
        save_file(pico.lora(number, layers=TWO, rank=1 + number % 3), folder / f"{name}.safetensors")
    (files.folder / "made" / "there.safetensors").write_text("precious")
    (folder / "style 0.png").write_bytes(b"a preview")
    return good


def test_twenty_mixed_files_give_twenty_rows(files: pico.Pico, mixed: list[str]) -> None:
    done = invoke(*words(files, "transfer"))
    assert done.exit_code != 0
    assert "Traceback" not in done.output
    rows = re.findall(r"^ *(\S.*?)\.(?:safetensors|pt) +(done|failed) +(.*)$", done.stdout, re.MULTILINE)
    outcomes = {name: outcome for name, outcome, _ in rows}
    made = [name for name in mixed if name != "there"]
    assert outcomes == dict.fromkeys([*NO_LORA, "there"], "failed") | dict.fromkeys(made, "done")
    assert len(rows) == 20
    assert done.stderr.count("error: ") == len(NO_LORA) + 1
    told = {name: rest for name, _, rest in rows}
    for name, word in NO_LORA.items():
        assert word in told[name], told[name]
    assert "already exists" in told["there"]
    assert f"{len(made)} of 20 LoRAs transferred into" in done.stdout
    assert (files.folder / "made" / "there.safetensors").read_text() == "precious"
    paths = [path for path in (files.folder / "made").rglob("*") if path.is_file()]
    names = [path.relative_to(files.folder / "made").with_suffix("").as_posix() for path in paths]
    assert sorted(names) == sorted(mixed)
    assert len(load_file(files.folder / "made" / "old" / "style.safetensors")) == 4

    again = invoke(*words(files, "transfer", "--skip-existing", "--json"))
    facts = json.loads(again.stdout)
    assert (again.exit_code, facts["failed"], facts["skipped"]) == (done.exit_code, len(NO_LORA), len(mixed))
    assert len(facts["reports"]) == 20


def test_a_plan_of_them_changes_nothing(files: pico.Pico, mixed: list[str]) -> None:
    before = sorted(files.folder.rglob("*"))
    done = invoke(*words(files, "plan"))
    assert sorted(files.folder.rglob("*")) == before
    assert "10 LoRAs in one job" in done.stdout  # what the numbers of a LoRA are, a plan does not look at
    assert done.stderr.count("  try:   ") == len(NO_LORA) - 1
    assert done.exit_code != 0
    facts = json.loads(invoke(*words(files, "plan", "--json")).stdout)
    assert (len(facts["plans"]), facts["failed"]) == (20, len(NO_LORA) - 1)
    assert facts["cost"]["output_bytes"] == sum(4 * rank * sum(map(sum, TWO.values())) for rank in ranks(files))


def ranks(files: pico.Pico) -> list[int]:
    """Of the LoRAs that a plan finds nothing wrong with."""
    found = []
    for path in (files.folder / "mixed").rglob("*.safetensors"):
        if path.stem == "nan" or path.stem.startswith(("style", "there")):
            found += [tensor.shape[0] for key, tensor in load_file(path).items() if "self_attn.q.lora_A" in key]
    return found


def test_choices_that_contradict_each_other(files: pico.Pico, mixed: list[str]) -> None:
    assert invoke(*words(files, "transfer", "--skip-existing", "--overwrite")).exit_code == 2
    assert invoke(*words(files, "transfer", "-o", files.folder / "out.safetensors")).exit_code == 2
    assert invoke(*words(files, "transfer", "--report", files.folder / "page.html")).exit_code == 2
    assert invoke(*words(files, "transfer", "--log", files.folder / "log.jsonl")).exit_code == 2
    assert invoke(*words(files, "transfer", "--method", "nonsense")).stderr.count("error: ") == 1


def test_what_lies_further_down_is_said(files: pico.Pico, mixed: list[str]) -> None:
    folder = files.folder / "mixed"
    done = invoke("check", folder, "-s", files.source, "-t", files.target)
    assert "1 LoRA is in subfolders, which --recursive takes too" in done.stderr
    (folder / "model_index.json").write_text("{}")
    refused = invoke(*words(files, "transfer"))
    assert (refused.exit_code, "this folder is a model" in refused.stderr) == (2, True)


def test_one_lora_whose_output_exists(files: pico.Pico) -> None:
    output = files.folder / "out.safetensors"
    output.write_text("precious")
    done = invoke("transfer", files.lora, "-s", files.source, "-t", files.target, "-o", output, "--skip-existing")
    assert (done.exit_code, output.read_text()) == (0, "precious")
    assert "already exists" in done.stdout
