"""Real diffusers pipelines: in memory and in folders, with random weights of a tiny size."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)

import tinywan
from loraport.errors import FileError, MismatchError, UsageError
from loraport.sampling.denoiser import Runnable
from loraport.sampling.pipelines import as_runnable
from loraport.sampling.prompts import conditions_for
from loraport.sampling.runner import ModelRunner, draw_noise
from loraport.sampling.schedule import SamplingSettings, Schedule, schedule_of
from loraport.sampling.wan import WanDenoiser, open_runnable
from loraport.zoo.attention import FrameCausalProcessor

SIZE = (tinywan.FRAMES, tinywan.SIZE, tinywan.SIZE)
FAST = Schedule((1.0, 0.757, 0.522, 0.0), 1.0, "renoise")
FROM = SamplingSettings(latents=SIZE, steps=3, guidance=3.0)
TO = SamplingSettings(schedule=FAST, latents=SIZE)


@pytest.fixture
def lora(tmp_path):
    return tinywan.lora(tmp_path / "style.safetensors")


@pytest.fixture
def folders(tmp_path):
    return tinywan.folders(tmp_path)


@pytest.mark.parametrize("stochastic", [False, True])
def test_probes_are_sampled_as_the_pipeline_samples(stochastic):
    """The pipeline's own call is the reference: its tokens, its guidance, its scheduler, step by step."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=stochastic)
    pipeline = tinywan.pipeline(scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    runnable = as_runnable(pipeline, SamplingSettings(latents=SIZE, steps=1 if stochastic else 4, guidance=3.0))
    assert runnable.schedule.sampler == ("renoise" if stochastic else "euler")
    noise, texts = draw_noise(runnable.latents, range(3)), list(tinywan.TEXTS[:3])
    ours = ModelRunner.open(runnable, 3).sample(noise, runnable.encode(texts))
    with torch.random.fork_rng(devices=[]):  # a stochastic scheduler draws from the global state
        theirs = pipeline(
            prompt=texts, negative_prompt=[""] * 3, latents=noise, num_inference_steps=runnable.schedule.steps,
            guidance_scale=3.0, output_type="latent", height=8 * tinywan.SIZE, width=8 * tinywan.SIZE, num_frames=5,
        ).frames  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    ],
)
def test_times_are_those_of_the_scheduler(scheduler):
    before = scheduler.timesteps.clone()
    schedule = schedule_of(scheduler, 6)
    assert torch.equal(scheduler.timesteps, before)
    scheduler.set_timesteps(6)
    assert torch.allclose(torch.tensor(schedule.times[:-1]) * 1000, scheduler.timesteps.float(), atol=1.0)
    assert schedule.times[-1] == 0
    unshifted = Schedule.even(6).times
    assert all(own > plain for own, plain in zip(schedule.times[1:4], unshifted[1:4], strict=True))


def test_a_shift_set_later_counts():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_shift(7.0)
    assert schedule_of(scheduler, 4).times[1] > 0.9


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (DDIMScheduler(), "DDIMScheduler"),
        (UniPCMultistepScheduler(), "without use_flow_sigmas"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "500"),
        (
            UniPCMultistepScheduler(
                use_flow_sigmas=True, prediction_type="flow_prediction", final_sigmas_type="sigma_min"
            ),
            "stops at",
        ),
    ],
)
def test_other_schedulers_are_refused_with_what_to_give(scheduler, says):
    with pytest.raises(UsageError, match=says) as caught:
        schedule_of(scheduler, 4, role="target")
    assert "--target-times" in caught.value.fix
    pipeline = tinywan.pipeline(scheduler=scheduler)
    assert as_runnable(pipeline, SamplingSettings(latents=SIZE, steps=2, shift=3.0)).schedule.times[1] == 0.75


def test_a_folder_brings_its_scheduler(folders):
    own = open_runnable(folders[0], SamplingSettings(latents=SIZE, steps=4), role="source").schedule
    assert own.times == schedule_of(FlowMatchEulerDiscreteScheduler(shift=3.0), 4).times
    assert own.guidance == 5.0
    even = open_runnable(folders[0], SamplingSettings(latents=SIZE, steps=4, shift=1.0, guidance=2.0), role="source")
    assert even.schedule == Schedule.even(4, guidance=2.0)
    file = folders[1] / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(UsageError, match="cannot be taken from its scheduler"):
        open_runnable(folders[1], SamplingSettings(latents=SIZE, steps=4), role="target")
    open_runnable(folders[1], TO, role="target")  # not asked where the times are given
    file.write_text("{")
    with pytest.raises(FileError, match="scheduler's configuration"):
        open_runnable(folders[1], SamplingSettings(latents=SIZE, steps=4), role="target")


def test_texts_need_an_encoder_of_the_source_or_the_target(folders, tmp_path):
    bare, whole = as_runnable(tinywan.pipeline(drift=0.2, encoder=False), TO), as_runnable(tinywan.pipeline(), FROM)
    folder = open_runnable(folders[0], FROM)
    with pytest.raises(FileError, match="no text encoder") as caught:
        conditions_for(bare, bare, tinywan.TEXTS)
    assert "prompt_embeds" in caught.value.fix
    with pytest.raises(UsageError, match="no text among"):
        conditions_for(whole, bare, [])
    by_source, by_target = conditions_for(whole, bare, tinywan.TEXTS), conditions_for(bare, whole, tinywan.TEXTS)
    assert torch.equal(by_source.prompts, by_target.prompts)
    assert torch.allclose(conditions_for(folder, bare, tinywan.TEXTS).prompts, by_source.prompts, atol=1e-5)
    (folders[0] / "model_index.json").unlink()
    with pytest.raises(FileError, match="text encoder could not be loaded"):
        conditions_for(folder, bare, tinywan.TEXTS)
    prompts = tmp_path / "latin.txt"
    prompts.write_bytes("ein Kätzchen".encode("latin-1"))
    with pytest.raises(FileError, match="prompts is not UTF-8"):
        conditions_for(whole, bare, prompts)


def test_an_encoder_in_training_mode_encodes_the_same():
    pipeline = tinywan.pipeline()
    calm = as_runnable(pipeline, FROM).encode(tinywan.TEXTS)
    pipeline.text_encoder.train()
    again = as_runnable(pipeline, FROM).encode(tinywan.TEXTS)
    assert torch.equal(calm.prompts, again.prompts)
    assert pipeline.text_encoder.training
    assert calm.prompts.shape == (4, 512, 16)


def test_prompts_of_another_width_are_refused():
    wide = as_runnable(tinywan.transformer(drift=0.2, changes={"text_dim": 20}), TO)
    some = as_runnable(tinywan.pipeline(), FROM).encode(tinywan.TEXTS)
    with pytest.raises(MismatchError, match="prompts do not fit"):
        ModelRunner.open(wide, 4).sample(draw_noise(wide.latents, range(4)), some)


def test_what_is_in_memory_and_cannot_be_run_is_refused(lora):
    pipeline = tinywan.pipeline()
    for settings, says in (
        (SamplingSettings(latents=SIZE), "time steps"),
        (SamplingSettings(steps=3), "size of the clips"),
        (SamplingSettings(latents=SIZE, steps=3, device="cpu"), "stays where it is"),
        (SamplingSettings(latents=(2, 7, 8), steps=3), "patches"),
    ):
        with pytest.raises(UsageError, match=says):
            as_runnable(pipeline, settings, role="source")
    with pytest.raises(UsageError, match="not something that can be run"):
        as_runnable(pipeline.text_encoder, FROM)
    with pytest.raises(UsageError, match="already says how it is run"):
        as_runnable(as_runnable(pipeline, FROM), FROM)
    with pytest.raises(UsageError, match="given twice"):
        SamplingSettings(schedule=FAST, latents=SIZE, steps=3)
    with pytest.raises(MismatchError, match="takes an image"):
        as_runnable(tinywan.transformer(changes={"in_channels": 9}), FROM)
    with torch.random.fork_rng(devices=[]):
        pipeline.load_lora_weights(lora)
    with pytest.raises(UsageError, match="adapters on it"):
        as_runnable(pipeline, FROM)
    with torch.random.fork_rng(devices=[]):
        pipeline.unload_lora_weights()
    as_runnable(pipeline, FROM)
    pipeline.register_modules(transformer_2=tinywan.transformer(1))
    with pytest.raises(MismatchError, match="two transformers"):
        as_runnable(pipeline, FROM)
    pipeline.register_modules(transformer=None, transformer_2=None)
    with pytest.raises(UsageError, match="no transformer"):
        as_runnable(pipeline, FROM)


def test_a_folder_with_two_transformers_is_refused(folders):
    (folders[0] / "transformer_2").mkdir()
    with pytest.raises(MismatchError, match="two transformers"):
        open_runnable(folders[0], FROM)


class BlockCausal:
    """Inference code of one's own: frames are seen in blocks, by the two methods of the protocol."""

    def __init__(self, network):
        per_frame = (tinywan.SIZE // 2) ** 2
        for block in network.blocks:
            block.attn1.set_processor(FrameCausalProcessor(per_frame))
        self.inner = WanDenoiser(network, torch.device("cpu"))

    def velocity(self, latents, time, condition):
        return self.inner.velocity(latents, time, condition)

    def linear(self, layer):
        return self.inner.linear(layer)


def _sees_ahead(denoiser, latents, width):
    """Whether the first frame depends on the last one."""
    noise = draw_noise(latents, range(1))
    other = noise.clone()
    other[:, :, -1] += 1.0
    prompt = torch.ones(1, 4, width)
    with torch.no_grad():
        first, second = (denoiser.velocity(x, 0.5, prompt) for x in (noise, other))
    assert not torch.equal(first[:, :, -1], second[:, :, -1])
    return not torch.allclose(first[:, :, 0], second[:, :, 0], atol=1e-6)


def test_a_block_causal_target_through_the_protocol():
    shape = (tinywan.CHANNELS, *SIZE)
    target = Runnable("causal", lambda: BlockCausal(tinywan.transformer(drift=0.2)), FAST, None, shape)
    assert not _sees_ahead(target.open(), shape, 16)
    assert _sees_ahead(WanDenoiser(tinywan.transformer(drift=0.2), torch.device("cpu")), shape, 16)


def test_the_bundled_causal_target_hides_the_future():
    runnable = open_runnable("zoo:self-forcing")
    assert not _sees_ahead(runnable.open(), runnable.latents, runnable.open().network.config.text_dim)


def test_a_model_in_memory_knows_where_it_was_loaded_from(folders):
    with torch.random.fork_rng(devices=[]):
        loaded = WanTransformer3DModel.from_pretrained(folders[0], subfolder="transformer")
    assert Path(as_runnable(loaded, TO).checkpoint) == folders[0]
    assert as_runnable(tinywan.transformer(), TO).checkpoint is None
    told = SamplingSettings(schedule=FAST, latents=SIZE, checkpoint=folders[1])
    assert as_runnable(loaded, told).checkpoint == str(folders[1])
