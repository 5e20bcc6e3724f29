"""`inspect` and `verify`: what files are, without and with reading their numbers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pico
from loraport.cli.main import app


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="loraport")


def test_inspect_a_lora(files: pico.Pico) -> None:
    page = invoke("inspect", files.lora)
    assert page.exit_code == 0, page.output
    for text in ("a LoRA for Wan", "2 blocks", "20 linear layers", "F32", "4 (20 layers)"):
        assert text in page.stdout
    facts = json.loads(invoke("inspect", files.lora, "--json").stdout)
    assert facts["kind"] == "lora"
    assert facts["ranks"] == {"4": 20}


def test_inspect_a_model(files: pico.Pico) -> None:
    facts = json.loads(invoke("inspect", files.source, "--json").stdout)
    assert facts["kind"] == "checkpoint"
    assert facts["dtypes"] == {"F32": 69}
    assert f"width {pico.WIDTH}" in facts["title"]


def test_inspect_finds_what_is_odd(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    for name in pico.LAYERS:
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(64.0)
    tensors["stranger"] = torch.zeros(2)
    save_file(tensors, files.lora)
    done = invoke("inspect", files.lora)
    assert done.exit_code == 3, done.output  # it would be refused
    assert "alpha / rank is 16" in done.stdout
    assert "stranger" in done.stdout
    assert "refused" in done.stdout
    factors = {f"unet.down.0.to_k.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
    save_file(factors, files.lora)
    assert "  what      a LoRA\n" in invoke("inspect", files.lora).stdout  # of what, nobody knows


def test_inspect_several_goes_on_after_a_bad_one(files: pico.Pico) -> None:
    files.target.write_bytes(b"junk")
    done = invoke("inspect", files.lora, files.target, files.source)
    assert done.exit_code == 5
    assert "a LoRA for" in done.stdout
    assert "a model:" in done.stdout
    assert done.stderr.count("error: ") == 1
    rows = json.loads(invoke("inspect", files.lora, files.target, "--json").stdout)["files"]
    assert rows[1]["error"]["exit_code"] == 5


def test_convert_there_and_back(files: pico.Pico) -> None:
    kohya, back = files.folder / "kohya.safetensors", files.folder / "back.safetensors"
    done = invoke("convert", files.lora, "--to", "kohya", "-o", kohya)
    assert done.exit_code == 0, done.output
    assert "bit for bit" in done.stdout
    assert len(load_file(kohya)) == 60
    facts = json.loads(invoke("convert", kohya, "-o", back, "--json").stdout)
    assert facts["layers"] == 20
    assert facts["folded"] == []
    before, after = load_file(files.lora), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert invoke("convert", kohya, "-o", back).exit_code == 5
    assert invoke("convert", kohya, "--to", "nonsense", "-o", back, "--overwrite").exit_code == 2


def test_verify_a_written_lora(files: pico.Pico) -> None:
    output = files.folder / "made.safetensors"
    assert invoke("convert", files.lora, "-o", output).exit_code == 0
    done = invoke("verify", output, "--no-load", "--model", files.target)
    assert done.exit_code == 0, done.output
    assert "all numbers are finite" in done.stdout
    assert json.loads(invoke("verify", output, "--no-load", "--json").stdout)["ok"] is True


def test_verify_takes_a_folder(files: pico.Pico) -> None:
    (files.folder / "made" / "inside").mkdir(parents=True)
    for name in ("one", "two", "inside/three"):
        shutil.copy(files.lora, files.folder / "made" / f"{name}.safetensors")
    done = invoke("verify", files.folder / "made", "--no-load")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "2 of 2 files pass"), done.output
    assert "checks ok)" in done.stdout
    assert "all numbers are finite" not in done.stdout
    assert "all numbers are finite" in invoke("verify", files.folder / "made", "--no-load", "-v").stdout
    (files.folder / "made" / "inside" / "four.safetensors").write_bytes(b"")
    done = invoke("verify", files.folder / "made", "--no-load", "--recursive")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (5, "3 of 4 files pass")
    assert "the file is empty" in done.stderr


def test_verify_names_what_is_wrong(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    tensors["diffusion_model.blocks.0.ffn.0.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, files.lora, metadata={"loraport.version": "0"})
    done = invoke("verify", files.lora, "--no-load")
    assert done.exit_code == 5
    assert "blocks.0.ffn.0.lora_A.weight" in done.stderr
    assert "FAILED" in done.stdout
    assert json.loads(invoke("verify", files.lora, "--no-load", "--json").stdout)["ok"] is False


def test_verify_of_a_family_that_is_not_known_says_what_it_needs(files: pico.Pico) -> None:
    """What the message names works: the layers are those of the model."""
    model, lora = files.lora.with_name("net.safetensors"), files.lora.with_name("alien.safetensors")
    save_file({"stages.0.mixer.weight": torch.ones(8, 8)}, model)
    save_file({f"stages.0.mixer.lora_{part}.weight": torch.ones(8, 8) for part in "AB"}, lora)
    assert "--architecture any --model" in invoke("verify", lora, "--no-load").stderr
    assert invoke("verify", lora, "--no-load", "--architecture", "any", "--model", model).exit_code == 0


def test_verify_calls_nothing_wrong_in_a_sound_file_of_others(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    for name in pico.LAYERS:
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, files.lora)
    done = invoke("verify", files.lora, "--no-load", "--model", files.source)
    assert done.exit_code == 0, done.output
    assert "no scale beside the factors    note     0.25 by .alpha tensor" in done.stdout
    assert "FAILED" not in done.stdout
    facts = json.loads(invoke("verify", files.lora, "--no-load", "--json").stdout)
    assert facts["ok"] is True
    assert {row["name"] for row in facts["checks"] if row["ok"] is None} == {
        "header says how it was made",
        "no scale beside the factors",
    }


def test_verify_for_a_program_says_what_would_arrive(files: pico.Pico) -> None:
    done = invoke("verify", files.lora, "--no-load", "--for", "comfyui")
    assert done.exit_code == 0, done.output
    assert "for ComfyUI (0.3.64 and 0.33.0, core nodes: its code was run), as a LoRA for Wan" in done.stdout
    assert "matched   40 of 40 keys" in done.stdout
    assert "scale     1 at strength 1" in done.stdout
    kohya = files.lora.with_name("made-kohya.safetensors")
    done = invoke("verify", files.lora, "--no-load", "--for", "musubi-tuner")
    assert done.exit_code == 3
    assert "matched   0 of 40 keys" in done.stdout
    assert "convert" in done.stderr
    assert "--to kohya" in done.stderr
    assert invoke("convert", files.lora, "--to", "kohya", "-o", kohya).exit_code == 0
    assert invoke("verify", kohya, "--no-load", "--for", "musubi-tuner").exit_code == 0
    facts = json.loads(invoke("verify", files.lora, "--no-load", "--for", "FastVideo 0.2.1", "--json").stdout)
    assert [row["program"] for row in facts["for"]] == [
        "FastVideo 0.2.1 (LoRA given at construction)",
        "FastVideo 0.2.1 (set_lora_adapter)",
    ]
    assert {row["verdict"] for row in facts["for"]} == {"in full"}
    assert len(facts["for"][0]["matched"]) == facts["for"][0]["keys"] == 40
    silent = json.loads(invoke("verify", files.lora, "--no-load", "--for", "musubi-tuner", "--json").stdout)
    assert (silent["ok"], silent["for"][0]["verdict"]) == (False, "not read")
    done = invoke("verify", files.lora, "--for", "mflux")  # no row for the family
    assert done.exit_code == 0, done.output
    assert "nobody has looked at what it does with LoRAs for Wan" in done.stdout
    wrong = invoke("verify", files.lora, "--for", "confyui")
    assert wrong.exit_code == 2
    assert "did you mean 'comfyui'?" in wrong.stderr


def test_verify_against_another_model(files: pico.Pico) -> None:
    save_file(pico.weights(1, width=48), files.target)
    done = invoke("verify", files.lora, "--no-load", "--model", files.target)
    assert done.exit_code == 3, done.output
    assert "width 48" in done.stderr
    assert done.stderr.count("error: ") == 1


def test_of_two_experts_or_adapters_one_must_be_named(files: pico.Pico) -> None:
    plain = load_file(files.lora)
    cases = {
        "expert": ("low", {f"{prefix}{key}": t for prefix in ("transformer_1.", "transformer_2.")
                           for key, t in ((k.removeprefix("diffusion_model."), t) for k, t in plain.items())}),
        "adapter": ("b", {key.replace(".weight", f".{name}.weight"): t for name in "ab" for key, t in plain.items()}),
    }  # fmt: skip
    output = files.folder / "one.safetensors"
    for what, (name, tensors) in cases.items():
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, files.lora)
        pair = ["--source", files.source, "--target", files.target]
        for words in (["convert", files.lora, "-o", output], ["verify", files.lora, "--no-load"],
                      ["transfer", files.lora, *pair, "-o", output], ["plan", files.lora, *pair]):  # fmt: skip
            refused = invoke(*words)
            assert refused.exit_code == 2, refused.output
            first, second = ("high", "low") if what == "expert" else "ab"
            assert f"try:   --{what} {first} or --{what} {second}\n" in refused.stderr
            done = invoke(*words, f"--{what}", name)
            assert done.exit_code == 0, done.output
            output.unlink(missing_ok=True)
            nonsense = invoke(*words, f"--{what}", "nonsense")
            assert nonsense.exit_code == 2, nonsense.output


def test_a_choice_that_chooses_nothing_is_said(files: pico.Pico) -> None:
    done = invoke("convert", files.lora, "-o", files.folder / "x.safetensors", "--adapter", "default")
    assert done.exit_code == 0, done.output
    assert "'default' selects nothing" in done.stderr


def test_convert_into_a_folder_and_against_a_model(files: pico.Pico) -> None:
    (files.folder / "made").mkdir()
    done = invoke("convert", files.lora, "-o", files.folder / "made", "--model", files.source)
    assert done.exit_code == 0, done.output
    assert (files.folder / "made" / files.lora.name).is_file()
    save_file(pico.weights(1, width=48), files.source)
    done = invoke("convert", files.lora, "-o", files.folder / "x.safetensors", "--model", files.source)
    assert done.exit_code == 3, done.output
    assert "use the model of the size" in done.stderr


def test_a_mistyped_path_is_met_with_its_neighbour(files: pico.Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files.folder.parent)
    files.folder.rename("models")
    # Without its ending it looks like a hub id; but there is such a folder here.
    for words in (["inspect", "models/sorce.safetensors"], ["verify", "models/sorce.x"], ["inspect", "models/sorce"]):
        done = invoke(*words)
        assert done.exit_code == 5
        assert "did you mean" in done.stderr
        assert "source.safetensors" in done.stderr
    (files.folder.parent / "models" / "nowhere2.html").touch()  # a page is not what was meant
    assert "try:   check the path" in invoke("inspect", "models/nowhere.safetensors").stderr
    assert "did you mean models?" in invoke("inspect", "modles/source.safetensors").stderr
    for file in ("https://example.org/style.safetensors", "https://example.org/owner/name"):
        assert "try:   download it first" in invoke("inspect", file).stderr


def test_a_name_that_programs_overlook_is_said(files: pico.Pico) -> None:
    done = invoke("convert", files.lora, "-o", files.folder / "made")
    assert "does not end in .safetensors" in done.stderr
    assert (done.exit_code, (files.folder / "made").is_file()) == (0, True)


def test_verify_junk(files: pico.Pico) -> None:
    files.lora.write_bytes(b"junk")
    done = invoke("verify", files.lora, "--no-load")
    assert done.exit_code == 5
    assert done.stderr.count("error: ") == 1
