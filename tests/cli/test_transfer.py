"""`transfer` and `plan` from end to end on the pico Wan: what they write and what they say."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pico
from loraport.cli.main import app
from loraport.engine import room


def invoke(*words: object):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words], prog_name="loraport")


def transfer(files: pico.Pico, *more: object):
    words = [files.lora, "--source", files.source, "--target", files.target, "-o", files.folder / "out.safetensors"]
    return invoke("transfer", *words, *more)


def plan(files: pico.Pico, *more: object):
    return invoke("plan", files.lora, "--source", files.source, "--target", files.target, *more)


def delta(path: Path, layer: str) -> torch.Tensor:
    tensors = load_file(path)
    key = f"diffusion_model.{layer}"
    return tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()


def test_the_main_job(files: pico.Pico) -> None:
    done = transfer(files)
    assert done.exit_code == 0, done.output
    output = files.folder / "out.safetensors"
    for text in ("20 transferred (casa)", "4 in, 32 out", "time", "load_lora_weights", "ComfyUI"):
        assert text in done.stdout
    assert str(output) in done.stdout
    assert len(load_file(output)) == 40
    with safe_open(output, framework="pt") as file:
        assert json.loads(file.metadata()["loraport.recipe"])
    assert invoke("verify", output, "--no-load", "--model", files.target).exit_code == 0


def test_json_is_one_document(files: pico.Pico) -> None:
    done = transfer(files, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["output"] == str(files.folder / "out.safetensors")
    assert len(facts["layers"]) == 20
    assert facts["summary"]["rank_out"] == 32
    assert facts["passthrough"] == facts["dropped"] == []


def test_the_second_run_takes_finished_layers(files: pico.Pico) -> None:
    assert "from an earlier run" not in transfer(files).stdout
    done = transfer(files, "--overwrite")
    assert "20 of 20 layers from an earlier run" in done.stdout
    assert transfer(files, "--overwrite", "--cache", "off", "--json").exit_code == 0


def test_a_plan_without_a_cache_does_not_say_what_one_would_be_worth(files: pico.Pico) -> None:
    assert "  cache     " in plan(files).stdout
    done = plan(files, "--cache", "off")
    assert done.exit_code == 0, done.output
    assert "  cache     " not in done.stdout


def test_verbose_shows_a_table_and_quiet_nothing(files: pico.Pico) -> None:
    table = transfer(files, "-v").stdout
    assert all(name in table for name in pico.LAYERS)
    for column in ("rank", "energy", "update", "drift", "cosine"):
        assert column in table
    done = transfer(files, "-q", "--overwrite")
    assert (done.exit_code, done.output) == (0, "")


def test_the_options_arrive(files: pico.Pico) -> None:
    done = transfer(
        files, "--method", "casa", "--rank", 6, "--amount", 0.5, "--dtype", "bfloat16", "--layers", r"^blocks\.0\.",
        "--set", "casa.q_dom=0.7", "--set", "arbitrate=false", "--drop", "ffn", "--device", "cpu", "--workers", 1,
        "--executor", "serial", "--max-memory", "2GB", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    summary = facts["summary"]
    assert (summary["params"]["q_dom"], summary["params"]["arbitrate"], summary["amount"]) == (0.7, False, 0.5)
    assert (summary["rank_out"], summary["dtype"], summary["layers"]) == (6, "bfloat16", 16)
    assert {layer["method"] for layer in facts["layers"]} == {"casa", "direct"}
    assert len(facts["dropped"]) == 8
    assert {tensor.dtype for tensor in load_file(files.folder / "out.safetensors").values()} == {torch.bfloat16}


def test_amount_nothing_is_the_lora_itself(files: pico.Pico) -> None:
    assert transfer(files, "--amount", 0).exit_code == 0
    for name in pico.LAYERS:
        assert torch.allclose(delta(files.folder / "out.safetensors", name), delta(files.lora, name), atol=1e-6)


@pytest.mark.parametrize("profile", ["universal", "diffusers", "kohya", "original", "fastvideo", "same-as-input"])
def test_profiles(files: pico.Pico, profile: str) -> None:
    done = transfer(files, "--to", profile)
    assert done.exit_code == 0, done.output
    assert len(load_file(files.folder / "out.safetensors")) == (60 if profile == "kohya" else 40)


def test_a_preset(files: pico.Pico) -> None:
    facts = json.loads(transfer(files, "--preset", "released-code", "--json").stdout)
    assert facts["summary"]["params"]["complete_basis"] is True


def test_a_distillation_lora_as_the_target(files: pico.Pico) -> None:
    fast = files.folder / "speed up.safetensors"
    save_file(pico.lora(11), fast)
    done = invoke(
        "transfer",
        files.lora,
        "-s",
        files.source,
        "--target-lora",
        f"{fast}:0.5",
        "-o",
        files.folder / "out.safetensors",
    )
    assert done.exit_code == 0, done.output
    assert "speed up.safetensors" in done.stdout


def test_several_into_a_folder(files: pico.Pico) -> None:
    second, bad = files.folder / "second.safetensors", files.folder / "bad.safetensors"
    save_file(pico.lora(9), second)
    bad.write_bytes(b"junk")
    folder = files.folder / "made"
    words = [files.lora, bad, second, "-s", files.source, "-t", files.target, "-o", folder]
    done = invoke("transfer", *words)
    assert done.exit_code == 5
    assert done.stderr.count("error: ") == 1
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["second.safetensors", "style.safetensors"]
    assert re.search(r"bad\.safetensors +failed", done.stdout)
    facts = json.loads(invoke("transfer", *words, "--overwrite", "--json").stdout)
    assert facts["failed"] == 1
    assert [("error" in report) for report in facts["reports"]] == [False, True, False]


def test_several_need_a_folder_and_different_names(files: pico.Pico) -> None:
    other = files.folder / "other"
    other.mkdir()
    (other / files.lora.name).write_bytes(files.lora.read_bytes())
    words = ["-s", files.source, "-t", files.target, "-o"]
    assert invoke("transfer", files.lora, other / files.lora.name, *words, files.folder / "made").exit_code == 2
    refused = invoke("transfer", files.lora, files.source, *words, files.target)
    assert refused.exit_code == 2
    assert "source.safetensors" in refused.stderr
    assert "--source and --target" in refused.stderr


def test_an_existing_folder_as_output(files: pico.Pico) -> None:
    (files.folder / "made").mkdir()
    done = invoke("transfer", files.lora, "-s", files.source, "-t", files.target, "-o", files.folder / "made")
    assert done.exit_code == 0, done.output
    assert (files.folder / "made" / files.lora.name).is_file()


def test_plan_changes_nothing(files: pico.Pico) -> None:
    before = sorted(files.folder.rglob("*"))
    done = plan(files, "-v")
    assert done.exit_code == 0, done.output
    for text in (
        "Wan (2 blocks, width 32)",
        "20 layers, from 40 keys",
        "operations",
        "memory",
        "disk",
        "blocks.0.ffn.0",
    ):
        assert text in done.stdout
    assert sorted(files.folder.rglob("*")) == before
    facts = json.loads(plan(files, "--json").stdout)
    assert facts["coverage"]["layers"] == 20
    assert all(facts["cost"][name] > 0 for name in ("operations", "seconds", "peak_bytes", "output_bytes"))
    assert len(facts["layers"]) == 20


def test_a_plan_says_what_the_run_would_say_of_too_little_room(files: pico.Pico, monkeypatch) -> None:
    """Of memory and of the disk, of one LoRA and of several."""
    disk = shutil.disk_usage(files.folder)._replace(free=1000)
    monkeypatch.setattr(room, "free_memory", lambda: 1000)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: disk)
    other = shutil.copy(files.lora, files.folder / "other.safetensors")
    for more in ((), (other,)):
        facts = json.loads(plan(files, *more, "-o", files.folder / "made", "--json").stdout)
        of_disk, of_memory = facts["warnings"]
        assert "will be written" in of_disk
        assert "only 1.0 kB of memory is free" in of_memory
        assert of_memory in plan(files, *more, "-o", files.folder / "made").stderr.replace("\n", " ")


def test_a_plan_reads_no_tensor_data(files: pico.Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("tensor data was read")

    monkeypatch.setattr("loraport.containers.tensors.read_tensor", refuse)
    assert plan(files).exit_code == 0


def test_a_profile_that_cannot_spell_what_is_carried_is_refused_before_the_work(
    files: pico.Pico, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(files.lora)
    tensors["diffusion_model.blocks.0.norm3.diff"] = torch.ones(pico.WIDTH)
    save_file(tensors, files.lora)

    def refuse(*arguments: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("loraport.engine.run.executor_for", refuse)
    for command in (plan, transfer):
        done = command(files, "--to", "diffusers")
        assert done.exit_code == 3, done.output
        for word in ("diffusers profile", "blocks.0.norm3.weight", "diffusion_model.blocks.0.norm3.diff", "--drop"):
            assert word in done.stderr
        assert "Traceback" not in done.output
    assert plan(files, "--to", "diffusers", "--drop", "norm3").exit_code == 0
    assert plan(files, "--to", "universal").exit_code == 0


@pytest.mark.parametrize("more", [[], ["--amount", 0], ["--method", "direct"]])
def test_layers_that_match_nothing_are_a_usage_error(files: pico.Pico, more: list) -> None:
    for command in (plan, transfer):
        done = command(files, "--layers", "attention", *more)
        assert done.exit_code == 2, done.output
        for word in ("--layers", "attention", "blocks.0.self_attn.q", "blocks.0.cross_attn", "blocks.0.ffn"):
            assert word in done.stderr
    assert not (files.folder / "out.safetensors").exists()
    assert plan(files, "--layers", "ffn", "--drop", "attn").exit_code == 0
    assert plan(files, "--layers", "ffn", "--drop", "ffn").exit_code == 2  # what is left out cannot match


def test_progress_is_plain_lines_when_nobody_watches(files: pico.Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraport.cli.progress._LINE_EVERY", 0.0)
    done = transfer(files)
    assert "10/20 layers" in done.stderr
    assert "\x1b" not in done.output


def test_the_summary_names_the_layer_that_lost_most(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    for half in "AB":
        del tensors[f"diffusion_model.blocks.1.ffn.2.lora_{half}.weight"]
    tensors["diffusion_model.blocks.1.ffn.2.diff"] = torch.randn(32, 64, generator=torch.Generator().manual_seed(5))
    save_file(tensors, files.lora)
    done = transfer(files, "--rank", 4, "--method", "direct")
    assert done.exit_code == 0, done.output
    assert re.search(r"least in blocks\.1\.ffn\.2: \d+\.\d % \(a whole matrix in the input\)", done.stdout), done.stdout
    done = transfer(files, "--rank", "full", "--overwrite")
    assert "the full update is kept in every layer" in done.stdout
    done = transfer(files, "--rank", 4, "--overwrite")
    assert "more with a larger --rank" in done.stdout


def test_layers_that_only_came_along_are_counted(files: pico.Pico) -> None:
    done = transfer(files, "--layers", r"^blocks\.0\.")
    assert "10 transferred (casa), 10 unchanged" in done.stdout


def test_a_second_transfer_is_refused_unless_forced(files: pico.Pico) -> None:
    assert transfer(files).exit_code == 0
    once, twice = files.folder / "out.safetensors", files.folder / "twice.safetensors"
    words = ["transfer", once, "-s", files.source, "-t", files.target, "-o", twice]
    done = invoke(*words)
    assert done.exit_code == 3, done.output
    assert "was already transferred" in done.stderr
    assert not twice.exists()
    assert invoke(*words, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("profile", "words"),
    [("diffusers", 'diffusers: pipe.load_lora_weights("'), ("original", "LightX2V"), ("fastvideo", "set_lora_adapter")],
)
def test_it_says_how_to_load_the_file(files: pico.Pico, profile: str, words: str) -> None:
    assert f"load it   {words}" in transfer(files, "--to", profile).stdout.replace("FastVideo: generator.", "")


def test_warnings_come_once(files: pico.Pico) -> None:
    save_file(load_file(files.source), files.target)
    done = transfer(files)
    assert done.exit_code == 0, done.output
    assert done.output.count("nothing to transfer") == 1


def test_bundled_models_and_loras_go_by_name_everywhere(tmp_path: Path) -> None:
    pair = ("--source", "zoo:source", "--target", "zoo:step", "--method", "direct")
    assert invoke("plan", "zoo:outline", *pair).exit_code == 0
    done = invoke("transfer", "zoo:outline", *pair, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["outline.safetensors"]
    assert invoke("inspect", "zoo:outline", "zoo:source", "zoo:distill-lora").exit_code == 0
    assert invoke("verify", "zoo:outline", "--model", "zoo:source").exit_code == 0
    assert invoke("convert", "zoo:outline", "-o", tmp_path / "c.safetensors", "--to", "kohya").exit_code == 0
    distill = ("--source", "zoo:source", "--target-lora", "zoo:distill-lora:0.5", "--method", "direct")
    done = invoke("transfer", "zoo:outline", *distill, "-o", tmp_path / "d.safetensors")
    assert done.exit_code == 0, done.output
    unknown = invoke("plan", "zoo:outlyne", *pair)
    assert unknown.exit_code == 2
    assert "outline" in unknown.output


def test_a_page_about_a_transfer(files: pico.Pico) -> None:
    page = files.folder / "page.html"
    assert transfer(files, "--report", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "blocks.1.ffn.2" in text
    assert "layers, method casa" in text
    for words in (["--report", page], ["--report", files.source, "--overwrite"], ["--report", files.folder]):
        before = files.source.read_bytes()
        done = transfer(files, "-o", files.folder / "other.safetensors", *words)
        assert done.exit_code == 5, done.output
        assert files.source.read_bytes() == before
        assert not (files.folder / "other.safetensors").exists()


def test_a_card_to_publish_it_with(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    header = {"modelspec.trigger_phrase": "ink | wash", "modelspec.license": "cc-by-4.0", "ss_steps": "1200"}
    save_file(tensors, files.lora, {**header, "ss_tag_frequency": '{"a": {"<b>cat</b>": 3}}'})
    card, out = files.folder / "README.md", files.folder / "card out.safetensors"
    (files.folder / "inference_config.json").write_text('{"num_inference_steps": 4}', encoding="utf-8")
    done = transfer(files, "-o", out, "--card", card)
    assert done.exit_code == 0, done.output
    assert f"card      {card}" in done.stdout
    _, front, body = card.read_text(encoding="utf-8").split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["base_model"] == [files.target.name]
    assert facts["base_model_relation"] == "adapter"
    assert (facts["license"], facts["instance_prompt"]) == ("cc-by-4.0", "ink | wash")
    raw = out.read_bytes()
    whole, data = hashlib.sha256(raw), hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :])
    assert f"AutoV2 {whole.hexdigest()[:10].upper()}, AutoV3 {data.hexdigest()[:12].upper()}" in body
    for text in ("ink \\| wash", "\\<b\\>cat", "1200", "casa", files.source.name, "cc-by-4.0", "num_inference"):
        assert text in body, text
    assert str(files.folder) not in front + body
    for words in (
        ["--card", card],
        ["--card", files.source, "--overwrite"],
        ["--card", files.folder / "o.safetensors"],
    ):
        assert transfer(files, "-o", files.folder / "o.safetensors", *words).exit_code == 5
        assert not (files.folder / "o.safetensors").exists()
