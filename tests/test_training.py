"""The scripts that train a family: what every size says, and a whole family of a small size of its own."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loraport.evaluate.clips import Scale
from loraport.evaluate.family import open_family
from loraport.evaluate.judge import open_judge
from loraport.evaluate.run import evaluate
from loraport.evaluate.variants import direct
from loraport.sampling.schedule import NO_SETTINGS
from loraport.sampling.wan import open_runnable
from loraport.zoo.catalogue import ClipSize

FOLDER = Path(__file__).parents[1] / "training"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def script(monkeypatch):
    """A module of `training/` by name, whatever other tests have imported under such names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for path in FOLDER.glob("*.py"):
        other = getattr(sys.modules.get(path.stem), "__file__", None)
        if other is not None and Path(other) != path:
            monkeypatch.delitem(sys.modules, path.stem)
    return importlib.import_module


def _options(script, monkeypatch, *arguments: str):
    monkeypatch.setattr(
        sys, "argv", ["script", "--out", "nowhere", "--threads", str(torch.get_num_threads()), *arguments]
    )
    common = script("common")
    return common, common.begin(common.training_arguments(None))


def test_every_size_has_a_plan_for_everything_that_is_trained(script):
    sizes, family = script("sizes").SIZES, script("train_family")
    asked = {
        script_.removeprefix("train_").removesuffix(".py") if not rest else rest[0] for script_, *rest in family.ORDER
    }
    for size in sizes.values():
        assert set(size.plans) == asked - {"make_trajectories", "measure"}
        assert size.config["patch_size"][1] * size.config["rope_max_seq_len"] >= size.clip.side
        assert {plan.start for plan in size.plans.values()} <= {"source", *size.plans}


def test_a_size_is_what_it_is_said_to_be_and_options_go_before_it(script, monkeypatch):
    common, options = _options(script, monkeypatch, "--size", "middle", "--device", "cpu", "--steps", "7")
    assert (options.size.clip, options.device.type) == (ClipSize(8, 32), "cpu")
    assert common.plan_of("outline", options) == replace(options.size.plans["outline"], steps=7)
    assert _options(script, monkeypatch)[1].size.name == "tiny"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(script, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        _options(script, monkeypatch, "--device", "cuda:1")
    assert "cuda:1" in capsys.readouterr().err


def test_a_model_of_another_size_is_refused(script, monkeypatch, tmp_path):
    common, sizes = script("common"), script("sizes").SIZES
    small = _small(sizes["tiny"])
    with torch.random.fork_rng(devices=[]):
        model = common.new_model(1, small)
        common.save_model(model, model.state_dict(), tmp_path, small)
        with pytest.raises(SystemExit, match="another size than --size middle"):
            common.load_model(tmp_path, sizes["middle"])
        again = common.load_model(tmp_path, small)
    assert all(
        torch.equal(value.bfloat16().float(), again.state_dict()[key]) for key, value in model.state_dict().items()
    )


def _small(like):
    config = like.config | {"num_attention_heads": 1, "attention_head_dim": 16, "ffn_dim": 24, "num_layers": 1}
    return replace(like, name="small", clip=ClipSize(4, 24), config=config)


@pytest.mark.slow
def test_a_family_of_another_size_is_trained_measured_and_evaluated(script, monkeypatch, tmp_path):
    monkeypatch.setitem(script("sizes").SIZES, "small", _small(script("sizes").SIZES["tiny"]))
    out = tmp_path / "out"
    with torch.random.fork_rng(devices=[]):
        for name, *rest in script("train_family").commands("small", quick=True):
            monkeypatch.setattr(sys, "argv", [name, *rest, "--out", str(out), "--device", "cpu", "--threads", "1"])
            script(name.removesuffix(".py")).main()
    final = out / "final"
    family = open_family(final)
    assert {model.card.clip for model in (family.source, *family.targets)} == {ClipSize(4, 24)}
    assert len(json.loads((final / "results.json").read_text())) == 2 * (3 + len(family.targets)) + len(family.targets)
    assert open_runnable(final / "models" / "two-loras", NO_SETTINGS).latents == (3, 4, 24, 24)
    judge = open_judge(final / "classifier.safetensors", family.source.card.clip)
    chosen = family.for_choosing().pick(("self-forcing", "two-loras"), ("zigzag",))
    evidence = evaluate(chosen, [direct(1.0)], judge, scale=Scale(prompts=2, seeds=1), folder=tmp_path / "evidence")
    assert evidence.cell("zigzag", "two-loras", "direct").shown.shape == (2, 3, 4, 24, 24)
