"""Well-known distilled models: which name means which, and that what is said of them is what their authors do."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loraport.adapters.consumers import consumers
from loraport.adapters.distilled import distilled_models, known_model, names_of
from loraport.adapters.usage import known_usage, told_usage, ways_to_sample
from loraport.models.families import families


@pytest.mark.parametrize(
    ("name", "family", "known"),
    [
        ("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", "wan", "FastWan2.1"),
        ("/cache/models--FastVideo--FastWan2.1-T2V-1.3B-Diffusers/snapshots/0a1/transformer", "wan", "FastWan2.1"),
        ("FastWan2.2-TI2V-5B-FullAttn-Diffusers/transformer", "wan", "FastWan2.2"),
        ("Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1_lightx2v.safetensors", "wan", "LightX2V for Wan in 4 steps"),
        ("Qwen-Image-Edit-2509-Lightning-8steps-V1.0", "qwen_image", "Qwen-Image-Lightning in 8 steps"),
        ("Qwen-Image-2512-Lightning-4steps-V1.0-bf16", "qwen_image", "Qwen-Image-Lightning in 4 steps"),
        ("tencent/HunyuanVideo-1.5/480p_i2v_step_distilled", "hunyuan_video_15", "HunyuanVideo-1.5, step-distilled"),
        (
            "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v_step_distilled",
            "hunyuan_video_15",
            "HunyuanVideo-1.5, step-distilled",
        ),
        ("hunyuanvideo1.5_480p_i2v_step_distilled_fp16", "hunyuan_video_15", "HunyuanVideo-1.5, step-distilled"),
        ("black-forest-labs/FLUX.2-klein-9B", "flux2", "FLUX.2 klein"),
        ("flux-2-klein-base-4b.safetensors", "flux2", None),
        ("gdhe17/Self-Forcing", "wan", "Self Forcing"),
        ("gdhe17/Self-Forcing", "qwen_image", None),
        ("lightx2v/Qwen-Image-2.1-Lightning", "qwen_image_21", None),
        ("fastwan2.1/base/model.safetensors", "wan", None),  # a folder further up says nothing of it
        ("lightx2v/Qwen-Image-Lightning-4steps-V2.0", "qwen_image", "Qwen-Image-Lightning in 4 steps"),
        ("my-fastwan2.1-killer.safetensors", "wan", None),
        ("style_for_FastWan2.1.safetensors", "wan", None),
        ("anti-self-forcing", "wan", None),
        ("Wan2_1-T2V-1_3B-Self-Forcing_fp16.safetensors", "wan", "Self Forcing"),
        ("Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v/distill.safetensors", "wan", "LightX2V for Wan in 4 steps"),
        ("longliveness.safetensors", "wan", None),  # whole words only
        ("fastwan2.15-14b", "wan", None),
        ("self-forcing2", "wan", None),
    ],
)
def test_names_and_what_they_mean(name: str, family: str, known: str | None):
    found = known_model([name], family)
    assert (found and found.name) == known


def test_every_row_says_how_and_who_says_so():
    for row in distilled_models():
        assert row.family in families()
        assert (row.steps is None) == bool(row.times), row.name
        assert row.shift is None or not row.times, row.name  # the times have it in them
        assert row.seen, row.name
        assert row.count > 0
        assert row.made is None or (all(row.made) and "the same" not in row.made[1]), row.name  # it is read alone


def test_a_model_without_a_name_may_still_say_it(tmp_path: Path):
    folder = tmp_path / "mine" / "transformer"
    folder.mkdir(parents=True)
    assert known_model(names_of(folder), "wan") is None
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "FastVideo/FastWan2.1-T2V-1.3B-Diffusers"}))
    assert known_model(names_of(folder), "wan").name == "FastWan2.1"
    file = tmp_path / "other" / "model.safetensors"
    file.parent.mkdir()
    save_file({"a": torch.zeros(1)}, file, metadata={"modelspec.title": "FastWan2.1 T2V 1.3B"})
    assert known_model(names_of(file), "wan").name == "FastWan2.1"
    assert known_model(names_of(tmp_path / "mine", "FastWan2.1"), "wan").name == "FastWan2.1"


def test_what_a_file_says_of_itself_goes_before_its_name(tmp_path: Path):
    wan = families()["wan"]
    folder = tmp_path / "FastWan2.1"
    folder.mkdir()
    assert known_usage(folder, {}, wan).name == "FastWan2.1"
    (folder / "model.json").write_text(json.dumps({"sampling": {"steps": 2, "guidance": 1.0, "attention": "full"}}))
    assert known_usage(folder, {}, wan) is None
    assert told_usage(folder / "transformer", {}) == "steps 2, guidance 1.0, attention full (model.json beside it)"


def _set_shift(program: str, family: str, shift: float, scheduler: Any) -> Any:
    """The scheduler after the line that users are told to type."""
    import diffusers

    row = next(each for each in consumers() if each.program == program)
    pipe = SimpleNamespace(scheduler=scheduler)
    exec(row.families[family].shift.replace("{shift}", f"{shift:g}"), {**vars(diffusers), "pipe": pipe})
    return pipe.scheduler


def test_in_diffusers_the_line_gives_the_times_of_the_authors():
    """Wan2.2-Lightning: its authors name the times in issue 3 of their repository."""
    from diffusers import UniPCMultistepScheduler

    own = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    made = _set_shift("diffusers", "wan", 5, own)
    made.set_timesteps(4)
    assert made.sigmas.tolist() == pytest.approx([1.0, 0.9375, 0.83333, 0.625, 0.0], abs=1e-3)


def test_in_diffusers_qwen_lightning_has_the_times_of_its_readme():
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    own = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "shift_terminal": 0.02}
    told = {"use_dynamic_shifting": True, "base_shift": math.log(3), "max_shift": math.log(3), "shift": 1.0}
    sigmas = np.linspace(1.0, 1 / 8, 8)
    made = _set_shift("diffusers", "qwen_image", 3, FlowMatchEulerDiscreteScheduler(**own))
    made.set_timesteps(sigmas=sigmas, mu=0.7)  # as the pipeline calls it
    theirs = FlowMatchEulerDiscreteScheduler(**told)
    theirs.set_timesteps(sigmas=sigmas, mu=math.log(3))
    assert made.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "diffusers", "comfyui"),
    [
        ("LightX2V for Wan in 4 steps", "flow_shift=5); pipe(..., num_inference_steps=4, guidance_scale=1)",
         "ModelSamplingSD3 with shift 5; KSampler with steps 4, cfg 1, sampler euler, scheduler simple"),
        ("Z-Image-Turbo", "pipe(..., num_inference_steps=8, guidance_scale=0)",
         "KSampler with steps 8, cfg 1, sampler euler, scheduler simple"),
        ("Qwen-Image-Lightning in 4 steps", "num_inference_steps=4, true_cfg_scale=1)", "AuraFlow with shift 3"),
        ("FastWan2.1", None, "custom sampler lcm with the sigmas 1, 0.757, 0.522, 0, cfg 1"),
        ("Self Forcing", None, None),
    ],
)  # fmt: skip
def test_what_to_type_and_to_click(name: str, diffusers: str | None, comfyui: str | None):
    row = next(each for each in distilled_models() if each.name == name)
    ways = ways_to_sample(row, families()[row.family])
    for program, said in (("diffusers", diffusers), ("ComfyUI", comfyui)):
        assert (program in ways) == (said is not None)
        assert said is None or said in ways[program]
