"""The right verdict for pairs that are made to deserve it."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import loraport
import pico
from loraport.checking.names import kind_by_name
from loraport.checking.results import EXIT_CODES, CheckResult
from loraport.checking.run import check_recipes
from loraport.cli.main import app
from loraport.engine.recipe import Recipe
from loraport.errors import FileError, NumericalError, UsageError
from loraport.zoo import catalogue

SELF_ATTENTION = {name: shape for name, shape in pico.LAYERS.items() if "self_attn" in name}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pico.Pico:
    return pico.write(tmp_path_factory.mktemp("pico"))


def updates(lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight -> update, by the file's keys alone."""
    stems = [key.removesuffix(".lora_A.weight") for key in lora if key.endswith("lora_A.weight")]
    return {
        f"{stem.removeprefix('diffusion_model.')}.weight": lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"]
        for stem in stems
    }


def check(files: pico.Pico, target: dict[str, Tensor] | Path | str, *, lora: Path | str | None = None) -> CheckResult:
    if isinstance(target, dict):
        save_file({name: tensor.contiguous() for name, tensor in target.items()}, files.folder / "made.safetensors")
        target = files.folder / "made.safetensors"
    return loraport.check(lora or files.lora, source=files.source, target=target)


def test_no_drift(files: pico.Pico):
    found = check(files, files.source)
    assert (found.verdict, found.strength, found.exit_code) == ("use as is", 1.0, 0)
    assert found.kind.name == "no difference"
    assert found.figure("drift").value == 0.0
    assert found.figure("overlap") is None  # there is nothing to overlap with


def test_drift_on_other_layers_than_the_loras(files: pico.Pico):
    save_file(pico.lora(3, layers=SELF_ATTENTION), files.folder / "attention.safetensors")
    source, moved = load_file(files.source), load_file(files.target)
    target = {name: moved[name] if "ffn" in name else tensor for name, tensor in source.items()}
    found = check(files, target, lora=files.folder / "attention.safetensors")
    assert found.verdict == "use as is"
    assert any("differ elsewhere" in reason.text for reason in found.reasons)
    assert found.coverage.met == found.coverage.layers == len(SELF_ATTENTION)


@pytest.mark.parametrize("held", [0.5, -0.4])
def test_a_target_that_holds_some_of_the_lora_wants_the_rest(files: pico.Pico, held: float):
    target = pico.distilled(load_file(files.source), 4, drift=0.03)
    for name, update in updates(load_file(files.lora)).items():
        target[name] = target[name] + held * update
    found = check(files, target)
    assert found.verdict == "use at strength"
    assert found.strength == pytest.approx(1 - held, abs=0.051)
    assert found.reasons[0].threshold == "dose"
    assert found.figure("overlap").value * held > 0


def test_a_target_that_holds_the_lora_in_some_layers_only(files: pico.Pico):
    """No one strength suits all of them; a method that answers layer by layer comes nearer."""
    target = pico.distilled(load_file(files.source), 4, drift=0.03)
    for name, update in updates(load_file(files.lora)).items():
        if name.startswith("blocks.0."):
            target[name] = target[name] + 0.9 * update
    found = check(files, target)
    assert found.verdict == "convert"
    assert found.command.startswith("loraport transfer ")
    assert found.reasons[0].threshold == "uneven"


def test_a_target_that_holds_the_whole_lora(files: pico.Pico):
    target = load_file(files.source)
    for name, update in updates(load_file(files.lora)).items():
        target[name] = target[name] + update
    found = check(files, target)
    assert (found.verdict, found.strength, found.exit_code) == ("cannot help", None, 12)
    assert "holds this LoRA already" in found.headline
    assert found.kind.name == "a LoRA"


def test_a_target_that_holds_more_than_the_lora_among_other_things(files: pico.Pico):
    """Its drift is not the LoRA alone, and yet no strength above nothing is left."""
    target = pico.distilled(load_file(files.source), 4, drift=0.15)
    for name, update in updates(load_file(files.lora)).items():
        target[name] = target[name] + 1.1 * update
    found = check(files, target)
    assert found.figure("overlap").value < 0.9
    assert (found.verdict, found.headline) == ("cannot help", "the target holds this LoRA already")


def test_distillation_loras_of_zeros_leave_nothing_to_be_found_elsewhere(files: pico.Pico):
    nothing = {key: torch.zeros_like(tensor) for key, tensor in load_file(files.lora).items()}
    save_file(nothing, files.folder / "nothing.safetensors")
    found = loraport.check(files.lora, source=files.source, target_lora=files.folder / "nothing.safetensors")
    assert (found.verdict, len(found.reasons)) == ("use as is", 1)


def test_an_unrelated_target(files: pico.Pico):
    found = check(files, pico.weights(99))
    assert found.verdict == "cannot help"
    assert found.reasons[0].threshold == "unrelated"
    assert found.kind.name == "unrelated"


def test_a_lora_of_zeros(files: pico.Pico):
    lora = {key: tensor * (0 if "lora_B" in key else 1) for key, tensor in load_file(files.lora).items()}
    save_file(lora, files.folder / "zeros.safetensors")
    assert check(files, files.target, lora=files.folder / "zeros.safetensors").headline == "the LoRA does nothing"


def test_a_lora_of_which_little_or_nothing_meets_the_target(files: pico.Pico):
    """Half of its layers have to; the keys that do not are named, and of a file without any the first ones."""
    own = pico.lora(3)
    few = {key if ".ffn." in key else key.replace("attn", "else"): tensor for key, tensor in own.items()}
    save_file(few, files.folder / "few.safetensors")
    found = check(files, files.target, lora=files.folder / "few.safetensors")
    assert (found.verdict, found.stage, found.reasons[0].threshold) == ("cannot help", "headers", "coverage")
    assert found.coverage.met == 4
    none = {key.replace("attn", "else").replace("ffn", "none"): tensor for key, tensor in own.items()}
    save_file(none, files.folder / "none.safetensors")
    found = check(files, files.target, lora=files.folder / "none.safetensors")
    assert (found.verdict, found.coverage) == ("cannot help", None)
    assert "cross_else" in found.reasons[0].text


def test_a_lora_that_cannot_be_read_stops_no_other(files: pico.Pico):
    bad = {key: torch.full_like(tensor, torch.nan) for key, tensor in load_file(files.lora).items()}
    save_file(bad, files.folder / "nan.safetensors")
    loras = (files.folder / "nan.safetensors", files.lora)
    recipes = [Recipe(lora=str(lora), source=str(files.source), target=str(files.target)) for lora in loras]
    bad, good = check_recipes(recipes, loraport.RunOptions())
    assert isinstance(bad, NumericalError)
    assert good.figure("update").value > 0


def test_an_ordinary_drift(files: pico.Pico):
    found = check(files, files.target)
    assert found.verdict == "use as is"
    assert found.stage == "sample"
    assert [reason.threshold for reason in found.reasons] == ["large_drift", "keeps"]
    assert json.loads(json.dumps(found.to_json()))["verdict"] == "use as is"


def test_a_large_drift_wants_the_strength_that_was_measured_there(files: pico.Pico):
    found = check(files, pico.distilled(load_file(files.source), 4, drift=0.3))
    assert (found.verdict, found.strength) == ("use at strength", 1.25)
    assert found.reasons[0].threshold == "large_drift"
    assert "3e97826" in found.reasons[0].measured
    assert [way.partition(": ")[0] for way in found.load] == ["diffusers", "ComfyUI"]
    assert all("1.25" in way and "1.0" not in way for way in found.load)


def test_a_few_keys_that_meet_nothing_are_counted(files: pico.Pico):
    lora = load_file(files.lora) | {
        f"diffusion_model.blocks.0.cross_attn.k_img.lora_{part}.weight": torch.ones(shape)
        for part, shape in (("A", (4, 32)), ("B", (32, 4)))
    }
    save_file(lora, files.folder / "more.safetensors")
    found = check(files, files.target, lora=files.folder / "more.safetensors")
    assert found.coverage is not None
    assert found.coverage.layers == found.coverage.met + 1
    assert len(found.coverage.dropped) == 2
    assert "only 20 of 21 layers" in found.reasons[-1].text


def test_the_command_of_a_conversion_runs_where_keys_meet_nothing(files: pico.Pico):
    lora = load_file(files.lora) | {"diffusion_model.blocks.0.self_attn.q.dora_scale": torch.ones(1, 32)}
    del lora["diffusion_model.blocks.1.ffn.0.lora_A.weight"]
    save_file(lora, files.folder / "half.safetensors")
    found = check(files, files.target, lora=files.folder / "half.safetensors")
    assert found.verdict == "convert"
    words = shlex.split(found.command)[1:]
    words[words.index("-o") + 1] = str(files.folder / "from-half.safetensors")
    done = CliRunner().invoke(app, [*words, "--cache", "off"])
    assert done.exit_code == 0, done.output


WRONG = """
import atexit, sys
heavy = ("torch", "jaxtyping")
atexit.register(lambda: print("loaded", [name for name in heavy if name in sys.modules], file=sys.stderr))
from loraport.cli.main import app
app(sys.argv[1:])
"""


def test_the_wrong_family_and_the_wrong_size_are_refused_by_headers_alone(files: pico.Pico):
    family = {
        f"diffusion_model.double_blocks.{n}.{part}.lora_{side}.weight": torch.ones(shape)
        for n in range(2)
        for part in ("img_attn.proj", "txt_attn.proj", "img_mlp.0")
        for side, shape in (("A", (4, 64)), ("B", (64, 4)))
    }
    save_file(family, files.folder / "family.safetensors")
    save_file(pico.lora(3, width=48, ffn=96), files.folder / "size.safetensors")
    loras = [str(files.folder / f"{name}.safetensors") for name in ("family", "size")]
    pair = ["--source", str(files.source), "--target", str(files.target)]
    done = subprocess.run(
        [sys.executable, "-c", WRONG, "check", *loras, *pair, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_CODES["cannot help"], done.stderr
    assert done.stderr.splitlines()[-1] == "loaded []"
    for each in json.loads(done.stdout)["checks"]:
        assert (each["verdict"], each["stage"], each["figures"]) == ("cannot help", "headers", [])
        assert each["reasons"]


def test_a_target_of_another_size_and_a_lora_for_a_model(files: pico.Pico):
    save_file(pico.weights(5, width=48, ffn=96), files.folder / "wide.safetensors")
    assert check(files, files.folder / "wide.safetensors").verdict == "cannot help"
    wrong = loraport.check(files.lora, source=files.source, target=files.lora)
    assert str(files.lora) not in wrong.reasons[0].text  # which stands above
    other = shutil.copy(files.lora, files.folder / "other.safetensors")
    wrong = loraport.check(files.folder / "wide.safetensors", source=files.source, target=other)
    assert f"but this file is a LoRA: {other}" in wrong.reasons[0].text
    found = check(files, files.lora)
    assert found.verdict == "cannot help"
    assert "--target-lora" in found.reasons[1].text


def test_a_function_of_the_weights_is_converted_by_the_command_that_is_named(files: pico.Pico):
    lora = load_file(files.lora)
    for name, weight in load_file(files.source).items():
        stem = f"diffusion_model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in lora:
            lora[f"{stem}.dora_scale"] = 1.1 * weight.norm(dim=1, keepdim=True)
    save_file(lora, files.folder / "do ra.safetensors")
    found = check(files, files.target, lora=files.folder / "do ra.safetensors")
    assert (found.verdict, found.exit_code) == ("convert", 11)
    words = shlex.split(found.command)
    assert words[-1] == "do ra-converted.safetensors"
    words[-1] = str(files.folder / words[-1])
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    assert Path(words[-1]).exists()


def test_names_tell_of_a_swapped_pair(files: pico.Pico):
    fast = files.folder / "few-steps.safetensors"
    fast.write_bytes(files.target.read_bytes())
    right = loraport.check(files.lora, source=files.source, target=fast)
    wrong = loraport.check(files.lora, source=fast, target=files.source)
    assert right.kind.name == "few steps"
    assert not any("wrong way round" in text for text in right.warnings)
    assert sum("wrong way round" in text for text in wrong.warnings) == 1
    report = loraport.transfer(files.lora, source=fast, target=files.source, options=loraport.RunOptions(cache="off"))
    assert sum("wrong way round" in text for text in report.warnings) == 1


def test_what_names_tell_of():
    assert kind_by_name("x/FastWan2.1-T2V-1.3B").name == "distribution matching"
    assert kind_by_name("zoo:source", "turbo/experiments/wan/base.safetensors") is None


def test_errors_stay_errors(files: pico.Pico):
    with pytest.raises(FileError):
        check(files, files.target, lora=files.folder / "missing.safetensors")
    with pytest.raises(UsageError, match="target is not given"):
        loraport.check(files.lora, source=files.source)


def test_a_file_that_a_transfer_made(files: pico.Pico):
    made = files.folder / "carried.safetensors"
    loraport.transfer(files.lora, source=files.source, target=files.target, output=made, method="matched-gain")
    found = check(files, files.target, lora=made)
    assert (found.verdict, found.stage) == ("use as is", "headers")
    assert "transferred already" in found.headline


def test_the_strength_on_the_source_is_the_unit(files: pico.Pico):
    found = loraport.check(files.lora, source=files.source, target=files.source, strength=0.8)
    assert (found.verdict, found.strength) == ("use as is", 0.8)


def test_a_target_made_by_a_distillation_lora(files: pico.Pico):
    fast = files.folder / "fast.safetensors"
    save_file(pico.lora(8), fast)
    found = loraport.check(files.lora, source=files.source, target_lora=f"{fast}:0.5")
    assert found.kind.name == "a LoRA"
    assert found.kind.by == "names"
    assert found.figure("rounding").value == 0.0
    assert found.target_lora[0].endswith("fast.safetensors at strength 0.5")
    assert (found.verdict, found.reasons[0].threshold) == ("convert", "made_by_loras")
    assert f"--target-lora {fast}:0.5" in found.command
    weak = loraport.check(files.lora, source=files.source, target_lora=f"{fast}:0.1")
    assert weak.figure("drift").value < 0.09
    assert weak.verdict == "use as is"


def test_a_quantised_target_that_is_mostly_rounding(files: pico.Pico):
    target = {name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor
              for name, tensor in pico.distilled(load_file(files.source), 4, drift=0.01).items()}  # fmt: skip
    found = check(files, target)
    assert found.verdict == "use as is"
    assert found.kind.name == "rounding only"
    assert found.reasons[0].threshold == "rounding"


def test_one_bad_lora_among_several(files: pico.Pico):
    words = ["check", str(files.lora), str(files.folder / "missing.safetensors"), "-s", str(files.source), "-t"]
    done = CliRunner().invoke(app, [*words, str(files.source)])
    assert done.exit_code == 5
    assert "use as is" in done.stdout
    assert "no such file" in done.stdout
    quiet = CliRunner().invoke(app, [*words, str(files.source), "--quiet"])
    assert quiet.stdout == ""
    assert "no such file" in quiet.stderr


@pytest.mark.parametrize("method", ["direct", "identity"])
def test_a_method_that_reads_no_weights_has_the_same_verdict(files: pico.Pico, method: str):
    settings = {"lora": str(files.lora), "source": str(files.source), "target": str(files.target)}
    usual, found = (loraport.check(**settings, method=name) for name in ("casa", method))
    assert (found.verdict, found.figure("drift")) == (usual.verdict, usual.figure("drift"))
    assert usual.figure("change").value > 0.05
    assert found.figure("change").value == pytest.approx(0.0, abs=1e-3)


def test_the_command_says_what_the_function_finds(files: pico.Pico):
    words = ["check", str(files.lora), "--source", str(files.source), "--target", str(files.target)]
    said, more = (CliRunner().invoke(app, [*words, *flags]) for flags in ((), ("-v",)))
    assert "rigidity" not in said.stdout  # what to do fits on a screen
    assert "-v prints them" in said.stdout
    assert "rigidity of the drift" in more.stdout
    assert said.exit_code == 0
    assert "USE AS IS" in said.stdout
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    mine = check(files, files.target).to_json()
    assert document["figures"] == mine["figures"]
    assert document["reasons"] == mine["reasons"]


def test_the_command_names_models_that_were_not_opened(files: pico.Pico):
    save_file(pico.lora(3, width=48, ffn=96), files.folder / "size.safetensors")
    pair = ["--source", str(files.source), "--target", str(files.target)]
    said = CliRunner().invoke(app, ["check", str(files.folder / "size.safetensors"), *pair])
    assert said.exit_code == EXIT_CODES["cannot help"]
    assert f"  from      {files.source}\n" in said.stdout.replace("/\n", "/")
    assert f"  to        {files.target}\n" in said.stdout.replace("/\n", "/")


def test_bundled_pairs():
    """What was measured of them all is in docs/check.md."""
    source = next(name for name in catalogue.models() if catalogue.model_card(name).parent is None)
    lora = f"zoo:{catalogue.loras()[0]}"
    for name in catalogue.models():
        if name != source:
            found = loraport.check(lora, source=f"zoo:{source}", target=f"zoo:{name}")
            far = found.figure("drift").value >= 0.25
            assert (found.verdict, found.strength) == (("use at strength", 1.25) if far else ("use as is", 1.0)), name
            assert abs(found.figure("dose").value) < 0.05, name  # the bound of 0.15 stands well beyond
            assert found.figure("directions_drift").value > 0.3, name
    added = [f"zoo:{name}" for name in catalogue.distillations()]
    for files in [[each] for each in added] + [added]:
        found = loraport.check(lora, source=f"zoo:{source}", target_lora=files)
        assert found.kind.name == "a LoRA"
        assert found.figure("directions_drift").value < 0.25
        assert found.verdict == ("convert" if found.figure("drift").value >= 0.09 else "use as is")


def test_a_page_is_written_for_one_lora(files, tmp_path):
    page = tmp_path / "check.html"
    words = [
        "check",
        str(files.lora),
        "--source",
        str(files.source),
        "--target",
        str(files.target),
        "--report",
        str(page),
    ]
    done = CliRunner().invoke(app, [*words, "--json"])
    document = json.loads(done.stdout)
    assert done.exit_code == document["exit_code"]
    assert document["page"] == str(page)
    drawn = page.read_text(encoding="utf-8")
    assert f">{document['verdict']}" in drawn
    assert "rounding of the stored numbers" in drawn
    assert document["layers"][0]["name"] in drawn
    assert CliRunner().invoke(app, words).exit_code == 5  # it is there
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == done.exit_code
    assert CliRunner().invoke(app, [*words[:-1], str(files.lora), "--overwrite"]).exit_code == 5
    several = CliRunner().invoke(app, [words[0], str(files.lora), *words[1:]])
    assert several.exit_code == 2
    assert "describes one LoRA" in several.stderr


def test_a_name_that_is_not_there_is_not_taken_for_two_experts():
    with pytest.raises(UsageError, match="nope") as caught:
        loraport.check("zoo:zigzag", source="zoo:nope", target="zoo:dmd")
    assert "--expert" not in caught.value.message
