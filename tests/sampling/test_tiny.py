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
from loraport.sampling import tiny
from loraport.zoo import world
from loraport.zoo.catalogue import Sampling

FEW = Sampling(steps=2, guidance=1.0, shift=2.0)


def _setting(count=4, seed=0):
    return world.prompt_indices(world.draw_prompts(count, seed=seed)), tiny.noise(range(count))


def test_sampling_is_repeatable():
    network, card = tiny.load_model("step")
    prompts, noise = _setting()
    one = tiny.sample(network, card.sampling, prompts, noise, batch=2)
    again, _ = tiny.load_model("step")
    assert torch.equal(one, tiny.sample(again, card.sampling, prompts, noise, batch=2))
    assert not torch.equal(one, tiny.sample(network, card.sampling, prompts, tiny.noise(range(4, 8)), batch=2))


def test_the_distilled_model_paints_what_is_asked_for():
    network, card = tiny.load_model("step")
    prompts, noise = _setting(8)
    clips = tiny.sample(network, card.sampling, prompts, noise)
    right = looks.distance_to_styled(clips, looks.references(prompts, style="base"))
    wrong = looks.distance_to_styled(clips, looks.references(prompts.flip(0), style="base"))
    assert right.mean() < 0.5 * wrong.mean()


def test_the_source_with_its_lora_shows_the_style():
    network, card = tiny.load_model("source")
    prompts, noise = _setting(2)
    tiny.load_lora(network, zoo.path("outline"))
    references = looks.references(prompts, style="outline")
    assert looks.style_progress(tiny.sample(network, card.sampling, prompts, noise), references).mean() > 0.7


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_real_loader_adds_what_merging_by_hand_adds(strength):
    prompts, noise = _setting()
    network, _ = tiny.load_model("source")
    assert tiny.load_lora(network, zoo.path("noir"), strength=strength) == 40
    loaded = tiny.sample(network, FEW, prompts, noise)

    merged, _ = tiny.load_model("source")
    factors = load_file(zoo.path("noir"))
    weights = dict(merged.named_parameters())
    for key in factors:
        if key.endswith(".lora_A.weight"):
            layer = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
            down, up = factors[key].float(), factors[key.replace("lora_A", "lora_B")].float()
            weights[f"{layer}.weight"] += strength * up @ down  # alpha equals the rank
    by_hand = tiny.sample(merged, FEW, prompts, noise)
    assert torch.allclose(loaded, by_hand, atol=2e-4)


def test_a_lora_comes_off_again_and_the_next_replaces_it():
    prompts, noise = _setting(2)
    network, _ = tiny.load_model("step")
    before = tiny.sample(network, FEW, prompts, noise)
    tiny.load_lora(network, zoo.path("noir"))
    tiny.load_lora(network, zoo.path("outline"))
    outline = tiny.sample(network, FEW, prompts, noise)
    tiny.remove_lora(network)
    assert torch.equal(before, tiny.sample(network, FEW, prompts, noise))
    tiny.load_lora(network, zoo.path("outline"))
    assert torch.equal(outline, tiny.sample(network, FEW, prompts, noise))


def test_guidance_of_one_is_the_prompt_alone_and_more_goes_further():
    prompts, noise = _setting(2)
    network, _ = tiny.load_model("source")
    plain = tiny.sample(network, Sampling(1, 1.0, 2.0), prompts, noise)
    double = tiny.sample(network, Sampling(1, 2.0, 2.0), prompts, noise)
    triple = tiny.sample(network, Sampling(1, 3.0, 2.0), prompts, noise)
    assert torch.allclose(triple - double, double - plain, atol=1e-4)


def test_noise_depends_on_its_own_seed_only():
    assert torch.equal(tiny.noise([3, 7])[1], tiny.noise([7])[0])
    assert tiny.noise([]).shape[0] == 0


def test_no_clips_and_mismatched_noise():
    network, _ = tiny.load_model("step")
    prompts, noise = _setting(2)
    assert tiny.sample(network, FEW, prompts[:0], noise[:0]).shape[0] == 0
    with pytest.raises((UsageError, TypeCheckError)):  # the shapes are checked first where annotations are
        tiny.sample(network, FEW, prompts, noise[:1])


def test_lora_files_that_do_not_fit_are_refused(tmp_path):
    network, _ = tiny.load_model("step")
    with pytest.raises(FileError, match="no such LoRA"):
        tiny.load_lora(network, tmp_path / "missing.safetensors")
    factors = load_file(zoo.path("noir"))
    stray = {key.replace("blocks.3.attn2.to_q", "blocks.9.attn2.to_q"): value for key, value in factors.items()}
    save_file(stray, tmp_path / "stray.safetensors")
    with pytest.raises((UnmatchedKeysError, ValueError)):
        tiny.load_lora(network, tmp_path / "stray.safetensors")


def _copy_of_step(tmp_path, attention):
    folder = tmp_path / attention
    shutil.copytree(zoo.path("step"), folder)
    card = json.loads((folder / "model.json").read_text())
    card["sampling"]["attention"] = attention
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def test_frame_causal_attention_hides_the_future(tmp_path):
    network, _ = tiny.load_model(_copy_of_step(tmp_path, "frame-causal"))
    prompts, noise = _setting(1)
    changed = noise.clone()
    changed[:, :, 4:] += 1
    now, then = (tiny.sample(network, FEW, prompts, x) for x in (noise, changed))
    assert torch.allclose(now[:, :, :4], then[:, :, :4], atol=1e-5)
    assert not torch.allclose(now[:, :, 4:], then[:, :, 4:], atol=1e-2)
    full, _ = tiny.load_model("step")
    assert not torch.allclose(*(tiny.sample(full, FEW, prompts, x)[:, :, :4] for x in (noise, changed)), atol=1e-2)


def test_an_unknown_attention_is_refused(tmp_path):
    with pytest.raises(UsageError, match="sideways"):
        tiny.load_model(_copy_of_step(tmp_path, "sideways"))
