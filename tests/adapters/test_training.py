"""What a header says of the training, by each trainer's own keys; and that a hostile one says little."""

import json

import pytest

import loraport
import makers
import pico
from loraport.adapters.describe import describe
from loraport.adapters.training import LONGEST, Training, other_side, plain, read_training, swapped_by_name
from makers import LoraFile

MUSUBI = {
    "ss_network_module": "networks.lora_wan",
    "ss_sd_model_name": "wan2.2_t2v_high_noise_14B_fp16.safetensors",
    "ss_base_model_version": "wan",
    "ss_steps": "2400",
    "ss_epoch": "16",
    "ss_network_dim": "32",
    "ss_network_alpha": "16.0",
    "ss_training_comment": "None",
    "modelspec.timestep_range": "875,1000",
}
AI_TOOLKIT = {
    "software": '{"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit", "version": "0.7.1"}',
    "training_info": '{"step": 3000, "epoch": 61}',
    "ss_base_model_version": "zimage",
    "ss_tag_frequency": '{"1_sks cat": {"sks cat": 1}}',
}
KOHYA = {
    "ss_network_module": "networks.lora_flux",
    "ss_tag_frequency": '{"10_a": {"dog": 3, "park": 1}, "5_b": {"dog": 2, "lake": 4}}',
    "ss_base_model_version": "sd_1.5",
    "modelspec.trigger_phrase": "ohwx",
}
ONETRAINER = {"ot_branch": "master", "ot_config": '{"base_model_name": "black-forest-labs/FLUX.2", "lora_rank": 16}'}
DIFFUSERS = {"lora_adapter_metadata": '{"transformer.base_model_name_or_path": "Tongyi-MAI/Z-Image"}'}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            MUSUBI,
            Training(
                "musubi-tuner", ("wan2.2_t2v_high_noise_14B_fp16.safetensors", "wan"), 2400, 16, 32.0, 16.0, (875, 1000)
            ),
        ),
        (AI_TOOLKIT, Training("ai-toolkit 0.7.1", ("zimage",), 3000, 61, trigger="sks cat")),
        (
            KOHYA,
            Training(
                "a trainer of the kohya family (networks.lora_flux)", trigger="ohwx", tags=("dog", "lake", "park")
            ),
        ),
        (ONETRAINER, Training("OneTrainer", ("black-forest-labs/FLUX.2",), rank=16.0)),
        (DIFFUSERS, Training(base=("Tongyi-MAI/Z-Image",))),
        ({"format": "pt"}, Training()),
    ],
    ids=["musubi-tuner", "ai-toolkit", "kohya", "OneTrainer", "diffusers", "nothing"],
)
def test_the_keys_of_each_trainer(header, expected, tmp_path):
    assert read_training(tmp_path / "x.safetensors", header) == expected


def test_what_a_transfer_wrote_is_nothing_of_the_training(tmp_path):
    """The model that it was carried to, and the rank of the output."""
    written = {"ss_base_model_version": "Wan (2 blocks, width 24)", "ss_network_dim": "32", "ss_network_alpha": "32"}
    told = read_training(tmp_path / "x.safetensors", written | {"loraport.method": "casa", "ss_steps": "9"})
    assert told == Training(steps=9)
    assert read_training(tmp_path / "x.safetensors", written).rank == 32


def test_the_configuration_that_peft_wrote_beside(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "base_model_name_or_path": "Wan-AI/Wan2.1"}')
    assert read_training(tmp_path / "adapter_model.safetensors", {}).base == ("Wan-AI/Wan2.1",)
    assert read_training(tmp_path / "somebody-elses.safetensors", {}).base == ()
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    assert read_training(tmp_path / "adapter_model.safetensors", {}).base == ()


@pytest.mark.parametrize(("span", "expert"), [("875,1000", "high"), ("0,900", "low"), ("0,1000", None), ("9", None)])
def test_the_part_of_the_schedule_tells_the_expert(span, expert, tmp_path):
    assert read_training(tmp_path, {"modelspec.timestep_range": span}).expert == expert


@pytest.mark.parametrize(
    "header",
    [
        {"ss_sd_model_name": "\x1b[31mred\nnew line\u202e" + "x" * 100_000, "ss_training_comment": "\x00" * 50},
        {"training_info": "[" * 100_000, "software": '{"name": {"a": 1}, "version": [1]}', "ot_config": '"text"'},
        {"training_info": '{"step": 1e400, "epoch": true}', "ss_steps": "9" * 10_000, "ss_network_dim": "nan"},
        {"ss_tag_frequency": json.dumps({"a": {"tag\x1b": 2, "b": -1, "c": "many", "d": 10**30}, "b": [1], "c": 3})},
        {"ss_tag_frequency": json.dumps({str(n): {str(n): 1} for n in range(20_000)})},
        {"modelspec.timestep_range": "1000,0", "lora_adapter_metadata": '{"base_model_name_or_path": ["a"]}'},
    ],
)
def test_a_hostile_header_becomes_short_plain_text(header, tmp_path):
    found = read_training(tmp_path / "x.safetensors", header)
    texts = [found.trainer, *found.base, found.trigger, *found.tags, found.comment]
    assert all(text.isprintable() and len(text) <= LONGEST for text in texts)
    assert len(found.sentence()) < 8 * LONGEST
    json.dumps(found.to_json(), allow_nan=False)
    assert found.steps is None
    assert found.timesteps is None


def test_plain_text():
    assert plain(" two\n words\x07") == "two words\ufffd"
    assert plain("None") == plain(None) == plain(True) == plain([1]) == ""
    assert plain("x" * 500) == "x" * (LONGEST - 3) + "..."


TURBO, BASE = "Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image"


@pytest.mark.parametrize(
    ("named", "source", "target", "words"),
    [
        (TURBO, BASE, TURBO, "training adapter as --source-lora"),
        ("z_image_turbo_bf16.safetensors", "/turbo/models/z_image_bf16.safetensors", "", "--source-lora"),
        (BASE, TURBO, BASE, "wrong way round"),
        ("krea2-raw.safetensors", "krea2_turbo.safetensors", "krea2_raw_bf16.safetensors", "wrong way round"),
        (TURBO, TURBO, BASE, ""),
        (BASE, BASE, TURBO, ""),
        ("ostris/Z-Image-De-Turbo", BASE, TURBO, ""),
        ("zimage", "z_image_turbo.safetensors", "model.safetensors", ""),
        ("model.safetensors", "qwen-4steps.safetensors", "model.safetensors", ""),
        ("FLUX.2-klein-base-4B", "flux2-klein-base-4b.safetensors", "flux2-klein-4b.safetensors", ""),
    ],
)
def test_a_base_that_is_plainly_the_other_side_is_said(named, source, target, words):
    said = other_side(Training(base=(named,)), source, target)
    assert (words in said and named in said) if words else said is None


def test_a_pair_that_is_swapped_by_its_names_is_said():
    nothing = Training()
    assert "wrong way round" in str(swapped_by_name(nothing, "krea2_turbo.safetensors", "krea2_raw.safetensors"))
    assert "wrong way round" in str(swapped_by_name(nothing, "x/Rolling-Forcing", "x/Wan2.1-T2V-1.3B"))
    assert swapped_by_name(nothing, "krea2_raw.safetensors", "krea2_turbo.safetensors") is None
    assert swapped_by_name(nothing, TURBO, "z_image_lightning.safetensors") is None
    assert swapped_by_name(nothing, "ostris/Z-Image-De-Turbo", BASE) is None
    assert swapped_by_name(Training(base=(TURBO,)), TURBO, BASE) is None


def test_inspect_plan_and_report_tell_it(tmp_path):
    files = pico.write(tmp_path / "pico")
    lora = LoraFile(pico.lora(3), MUSUBI | {"ss_sd_model_name": "wan-lightning-4step.safetensors"}).write(tmp_path)
    found = describe(lora)
    assert found.trained.startswith("by musubi-tuner, on wan-lightning-4step.safetensors, 2,400 steps, 16 epochs")
    assert any("high-noise expert" in finding for finding in found.findings)
    recipe = loraport.Recipe(lora=lora, source=files.source, target=files.target, expert="low")
    warnings = loraport.plan(recipe).warnings
    assert any("--source-lora" in text and "lightning" in text for text in warnings)
    assert any("875 to 1000" in text and "swapped" in text for text in warnings)
    adapted = recipe.model_copy(update={"source_lora": files.lora, "expert": None})
    assert not any("--source-lora" in text for text in loraport.plan(adapted).warnings)
    options = loraport.RunOptions(cache="off", log="off")
    report = loraport.transfer(lora, source=files.source, target=files.target, method="direct", options=options)
    assert report.to_json()["summary"]["training"] == found.training
    assert found.training["base"][0] == "wan-lightning-4step.safetensors"


def test_a_file_that_is_refused_still_tells_its_training(tmp_path):
    tensors = makers.universal() | {"diffusion_model.blocks.0.self_attn.q.hada_t1": makers.universal().popitem()[1]}
    found = describe(LoraFile(tensors, AI_TOOLKIT).write(tmp_path))
    assert found.refused
    assert found.training["steps"] == 3000
