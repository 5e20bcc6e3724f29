"""What a comparison is made of besides pipelines: what is known of models, variants, intervals."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from loraport.adapters.distilled import distilled_models, known_model
from loraport.comparing.clips import model_digest
from loraport.comparing.images import FirstFrame
from loraport.comparing.pairs import LoraFiles, lora_file
from loraport.comparing.prompts import Prompt
from loraport.comparing.rendering import Shot
from loraport.comparing.scoring import scores_of
from loraport.comparing.settings import CompareSettings
from loraport.comparing.usual_sampling import filled, usual_sampling
from loraport.comparing.variants import list_variants
from loraport.errors import FileError, UsageError
from loraport.files import file_digest
from loraport.sampling.schedule import SamplingSettings


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Tongyi-MAI/Z-Image-Turbo", "Z-Image-Turbo"),
        ("/models/Krea-2-Turbo", "Krea 2 Turbo"),
        ("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", "FastWan2.1"),
        ("loras/Qwen-Image-Lightning-4steps-V2.0-bf16.safetensors", "Qwen-Image-Lightning in 4 steps"),
        ("Qwen-Image-Lightning-8steps-V1.1.safetensors", "Qwen-Image-Lightning in 8 steps"),
        ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors", "LightX2V for Wan in 4 steps"),
        ("loras/lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors", "LightX2V for Wan in 4 steps"),
        ("Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/high_noise_model.safetensors", "LightX2V for Wan in 4 steps"),
        ("Tongyi-MAI/Z-Image", None),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", None),
    ],
)
def test_well_known_models_are_known_by_their_names(name, known):
    found = known_model([name])
    assert (found and found.name) == known


def test_what_is_known_says_how_to_sample_and_who_says_so():
    for row in distilled_models():
        assert row.seen
        usual = usual_sampling(row)
        assert usual.steps or usual.times
        assert usual.guidance is not None


def test_what_the_user_says_goes_before_what_is_known():
    known = SamplingSettings(steps=4, shift=5, guidance=1)
    assert filled(SamplingSettings(), known) == known
    assert filled(SamplingSettings(steps=8), known) == SamplingSettings(steps=8, guidance=1)  # the clock is one thing
    assert filled(SamplingSettings(guidance=2), known) == SamplingSettings(steps=4, shift=5, guidance=2)
    times = SamplingSettings(times=(1000, 500), sampler="renoise", guidance=1)
    assert filled(SamplingSettings(steps=3), times) == SamplingSettings(steps=3, sampler="renoise", guidance=1)


def test_variants_have_names_of_their_own(tmp_path):
    files = [LoraFiles(tmp_path / "a" / "style.safetensors"), LoraFiles(tmp_path / "b" / "style.safetensors")]
    found = list_variants(LoraFiles(tmp_path / "style.safetensors"), files, (0.75, 1.0), source_alone=True)
    assert len({one.key for one in found}) == len({one.label for one in found}) == 7
    assert [one.role for one in found] == ["source"] * 2 + ["target"] * 5
    with pytest.raises(UsageError):
        list_variants(files[0], files, (1.0,))


def test_strengths_are_numbers_that_differ():
    assert CompareSettings(strengths="0.5,1,1.25").strengths == (0.5, 1, 1.25)
    for wrong in ("1,1", "0", "x", ()):
        with pytest.raises(UsageError):
            CompareSettings(strengths=wrong)


def test_intervals_are_over_prompts_with_their_seeds():
    rng = np.random.default_rng(0)
    prompts, seeds = 12, 3
    values = rng.normal(size=(prompts, 1)) + 0.1 * rng.normal(size=(prompts, seeds))
    found = {(p, s): {"x": float(values[p, s])} for p in range(prompts) for s in range(seeds)}
    score = scores_of(found, prompts, seeds)["x"]
    by_prompt = values.mean(1)
    draws = rng.choice(by_prompt, (4000, prompts)).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert score.mean == pytest.approx(values.mean())
    assert score.low == pytest.approx(low, abs=0.12 * (high - low))
    assert score.high == pytest.approx(high, abs=0.12 * (high - low))
    of_one = scores_of({(0, s): {"x": float(values[0, s])} for s in range(3)}, 1, 3)["x"]
    assert of_one.low < of_one.mean < of_one.high
    assert scores_of({(0, 0): {"x": 1.0}}, 1, 1)["x"].low is None


def test_clips_that_lack_a_number_do_not_count_for_it():
    """Nobody is found in some: the mean is over prompts that have the number, each with the seeds that have it."""
    found = {(p, s): {"all": float(p)} for p in range(3) for s in range(2)}
    found[0, 0]["some"], found[0, 1]["some"], found[2, 1]["some"] = 1.0, 3.0, 6.0
    scores = scores_of(found, 3, 2)
    assert (scores["all"].mean, scores["all"].clips) == (1, 6)
    assert (scores["some"].mean, scores["some"].clips) == (4, 3)
    assert scores["some"].low < 4 < scores["some"].high
    of_one = scores_of({(0, 0): {"x": 1.0}, (0, 1): {}, (0, 2): {"x": 2.0}}, 1, 3)["x"]
    assert (of_one.mean, of_one.clips) == (1.5, 2)
    assert scores_of({(0, 0): {"x": 1.0}, (1, 0): {}}, 2, 1)["x"].low is None
    assert "x" not in scores_of({(0, 0): {}}, 1, 1)


def test_clips_of_a_prompt_alone_keep_their_names():
    """Those that were made before there were images are found."""
    size = {"negative": None, "height": 16, "width": 32, "frames": None}
    shot = Shot(Prompt("a cat"), 3, height=16, width=32)
    assert shot.made_of() == {"prompt": "a cat", "seed": 3, **size}
    image = FirstFrame(Path("cat.png"), "5" * 64, 8, 8)
    assert Shot(Prompt("a cat", image), 3, height=16, width=32).made_of() == {**shot.made_of(), "image": "5" * 32}


def test_a_model_that_changes_is_another(tmp_path):
    (tmp_path / "transformer").mkdir()
    file = tmp_path / "transformer" / "config.json"
    file.write_text("{}", encoding="utf-8")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").write_text("a", encoding="utf-8")
    before = model_digest(tmp_path)
    (tmp_path / ".cache" / "x").write_text("b", encoding="utf-8")
    assert model_digest(tmp_path) == before
    file.write_text("{ }", encoding="utf-8")
    assert model_digest(tmp_path) != before


def test_the_digest_of_a_file_is_what_other_tools_say_of_it(tmp_path: Path):
    (tmp_path / "lora.safetensors").write_bytes(b"weights")
    assert file_digest(tmp_path / "lora.safetensors") == hashlib.sha256(b"weights").hexdigest()


def test_a_folder_means_the_lora_in_it(tmp_path: Path):
    file = tmp_path / "saved" / "pytorch_lora_weights.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    assert lora_file(file.parent) == lora_file(file) == file
    with pytest.raises(FileError, match="cannot tell which file"):
        lora_file(tmp_path)
