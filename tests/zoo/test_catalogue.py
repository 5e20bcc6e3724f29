"""What is bundled, and that it is complete, small and loadable by the real library."""

import json

import pytest
from diffusers import WanTransformer3DModel
from safetensors import safe_open

from loraport import zoo
from loraport.errors import FileError, UsageError
from loraport.evaluate.judge import bundled_judge
from loraport.zoo.catalogue import data_file, distillation_files, read_model_card

MOST_BYTES = 15_000_000


def test_the_names_are_there_sources_first():
    assert zoo.models()[0] == "source"
    assert {"step", "dmd"} <= set(zoo.models())
    assert {"noir", "outline"} <= set(zoo.loras())


def test_distillations_kept_as_loras_are_files_and_no_models():
    assert zoo.distillations() == ["distill-lora", "few-step", "guidance"]
    assert not {"distill-lora", "two-loras"} & set(zoo.models())
    assert zoo.path("distill-lora").is_file()
    assert zoo.model_card("distill-lora").parent in zoo.models()
    files = distillation_files(data_file("models") / "two-loras")
    assert [file.stem for file in files] == list(zoo.model_card("two-loras").loras) == ["few-step", "guidance"]
    assert all(file.is_file() for file in files)


def test_bundled_weights_stay_small():
    files = [*data_file("").rglob("*.safetensors"), bundled_judge()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES


def test_every_model_has_a_card_and_a_known_parent():
    for name in zoo.models():
        card = zoo.model_card(name)
        assert card.parent is None or card.parent in zoo.models()
        assert card.sampling.steps >= 1
        assert card.sampling.guidance >= 1
        assert card.summary


def test_every_lora_has_a_card_that_names_its_source_and_a_style():
    from loraport.zoo import world

    for name in zoo.loras():
        card = zoo.lora_card(name)
        assert card.source in zoo.models()
        assert card.style in world.STYLES


@pytest.mark.parametrize("name", zoo.models())
def test_models_load_in_diffusers_with_no_key_missing_or_left_over(name):
    import torch

    with torch.random.fork_rng(devices=[]):
        _, info = WanTransformer3DModel.from_pretrained(
            zoo.path(name), subfolder="transformer", output_loading_info=True
        )
    assert not any(info.values()), info


@pytest.mark.parametrize("name", zoo.loras())
def test_loras_cover_the_forty_matrices(name):
    with safe_open(zoo.path(name), "pt") as file:
        keys = list(file.keys())
    assert len(keys) == 80
    assert all(key.startswith("transformer.blocks.") for key in keys)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UsageError, match="outline"):
        zoo.path("outlin")
    with pytest.raises(UsageError, match="dmd"):
        zoo.model_card("step_strong")
    with pytest.raises(UsageError, match="noir"):
        zoo.lora_card("nior")


def test_a_folder_without_a_card_says_so(tmp_path):
    with pytest.raises(FileError, match=r"model\.json"):
        read_model_card(tmp_path)


def test_a_card_in_any_folder_is_read(tmp_path):
    card = {"summary": "mine", "parent": "source", "sampling": {"steps": 2, "guidance": 1.0, "shift": 3.0}}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.json").write_text(json.dumps(card))
    read = read_model_card(tmp_path / "mine")
    assert (read.name, read.sampling.steps, read.sampling.attention) == ("mine", 2, "full")


def test_the_catalogue_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, loraport.zoo; loraport.zoo.path('source'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
