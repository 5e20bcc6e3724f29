"""Sampling: repeatable, independent of workers, and a LoRA file means what its numbers say."""

import json
import shutil

import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import load_file, save_file

from loraport import zoo
from loraport.errors import FileError, UnmatchedKeysError, UsageError
from loraport.evaluate import looks
from loraport.sampling import tiny as sampler
from loraport.zoo import world
from loraport.zoo.catalogue import Sampling

FEW = Sampling(steps=2, guidance=1.0, shift=2.0)


def _setting(count=4, seed=0):
    return world.prompt_indices(world.draw_prompts(count, seed=seed)), sampler.draw_noise(range(count))


def test_sampling_is_repeatable_and_workers_change_nothing():
    network, card = sampler.load_model("step")
    prompts, noise = _setting()
    one = sampler.sample(network, card.sampling, prompts, noise, batch=2, workers=1)
    assert torch.equal(one, sampler.sample(network, card.sampling, prompts, noise, batch=2, workers=2))
    again, _ = sampler.load_model("step")
    assert torch.equal(one, sampler.sample(again, card.sampling, prompts, noise, batch=2))
    assert not torch.equal(
        one, sampler.sample(network, card.sampling, prompts, sampler.draw_noise(range(4, 8)), batch=2)
    )


def test_the_distilled_model_paints_what_is_asked_for():
    network, card = sampler.load_model("step")
    prompts, noise = _setting(8)
    clips = sampler.sample(network, card.sampling, prompts, noise)
    right = looks.distance_to_styled(clips, looks.references(prompts, style="base"))
    wrong = looks.distance_to_styled(clips, looks.references(prompts.flip(0), style="base"))
    assert right.mean() < 0.5 * wrong.mean()


def test_the_source_with_its_lora_shows_the_style():
    network, card = sampler.load_model("source")
    prompts, noise = _setting(2)
    sampler.load_lora(network, zoo.path("outline"))
    references = looks.references(prompts, style="outline")
    assert looks.style_progress(sampler.sample(network, card.sampling, prompts, noise), references).mean() > 0.7


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_real_loader_adds_what_merging_by_hand_adds(strength):
    prompts, noise = _setting()
    network, _ = sampler.load_model("source")
    assert sampler.load_lora(network, zoo.path("noir"), strength=strength) == 40
    loaded = sampler.sample(network, FEW, prompts, noise)

    merged, _ = sampler.load_model("source")
    factors = load_file(zoo.path("noir"))
    weights = dict(merged.named_parameters())
    for key in factors:
        if key.endswith(".lora_A.weight"):
            layer = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
            down, up = factors[key].float(), factors[key.replace("lora_A", "lora_B")].float()
            weights[f"{layer}.weight"] += strength * up @ down  # alpha equals the rank
    by_hand = sampler.sample(merged, FEW, prompts, noise)
    assert torch.allclose(loaded, by_hand, atol=2e-4)


def test_a_lora_comes_off_again_and_the_next_replaces_it():
    prompts, noise = _setting(2)
    network, _ = sampler.load_model("step")
    before = sampler.sample(network, FEW, prompts, noise)
    sampler.load_lora(network, zoo.path("noir"))
    sampler.load_lora(network, zoo.path("outline"))
    outline = sampler.sample(network, FEW, prompts, noise)
    sampler.remove_lora(network)
    assert torch.equal(before, sampler.sample(network, FEW, prompts, noise))
    sampler.load_lora(network, zoo.path("outline"))
    assert torch.equal(outline, sampler.sample(network, FEW, prompts, noise))


def test_guidance_of_one_is_the_prompt_alone_and_more_goes_further():
    prompts, noise = _setting(2)
    network, _ = sampler.load_model("source")
    plain = sampler.sample(network, Sampling(1, 1.0, 2.0), prompts, noise)
    double = sampler.sample(network, Sampling(1, 2.0, 2.0), prompts, noise)
    triple = sampler.sample(network, Sampling(1, 3.0, 2.0), prompts, noise)
    assert torch.allclose(triple - double, double - plain, atol=1e-4)


def test_the_time_grid_is_shifted_towards_noise():
    grid = sampler.time_grid(Sampling(4, 1.0, 2.0))
    assert torch.allclose(grid, torch.tensor([1.0, 6 / 7, 2 / 3, 0.4, 0.0]))


def test_noise_depends_on_its_own_seed_only():
    assert torch.equal(sampler.draw_noise([3, 7])[1], sampler.draw_noise([7])[0])
    assert sampler.draw_noise([]).shape[0] == 0


def test_no_clips_and_mismatched_noise():
    network, _ = sampler.load_model("step")
    prompts, noise = _setting(2)
    assert sampler.sample(network, FEW, prompts[:0], noise[:0]).shape[0] == 0
    with pytest.raises((UsageError, TypeCheckError)):  # the shapes are checked first where annotations are
        sampler.sample(network, FEW, prompts, noise[:1])


def test_lora_files_that_do_not_fit_are_refused(tmp_path):
    network, _ = sampler.load_model("step")
    with pytest.raises(FileError, match="no such LoRA"):
        sampler.load_lora(network, tmp_path / "missing.safetensors")
    factors = load_file(zoo.path("noir"))
    stray = {key.replace("blocks.3.attn2.to_q", "blocks.9.attn2.to_q"): value for key, value in factors.items()}
    save_file(stray, tmp_path / "stray.safetensors")
    with pytest.raises((UnmatchedKeysError, ValueError)):
        sampler.load_lora(network, tmp_path / "stray.safetensors")


def _copy_of_step(tmp_path, attention):
    folder = tmp_path / attention
    shutil.copytree(zoo.path("step"), folder)
    card = json.loads((folder / "model.json").read_text())
    card["sampling"]["attention"] = attention
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def test_frame_causal_attention_hides_the_future(tmp_path):
    network, _ = sampler.load_model(_copy_of_step(tmp_path, "frame-causal"))
    prompts, noise = _setting(1)
    changed = noise.clone()
    changed[:, :, 4:] += 1
    now, then = (sampler.sample(network, FEW, prompts, x) for x in (noise, changed))
    assert torch.allclose(now[:, :, :4], then[:, :, :4], atol=1e-5)
    assert not torch.allclose(now[:, :, 4:], then[:, :, 4:], atol=1e-2)
    full, _ = sampler.load_model("step")
    assert not torch.allclose(*(sampler.sample(full, FEW, prompts, x)[:, :, :4] for x in (noise, changed)), atol=1e-2)


def test_an_unknown_attention_is_refused(tmp_path):
    with pytest.raises(UsageError, match="sideways"):
        sampler.load_model(_copy_of_step(tmp_path, "sideways"))
