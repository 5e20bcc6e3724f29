"""The colour probe: exact where the network gives it a constant to work with, and a dose on pipelines that run."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import networks
import tiny_pipelines
import tiny_stills
import tiny_videos
from loraport.comparing import making_probe
from loraport.comparing.making_probe import Inputs, outputs_for, write_probe
from loraport.comparing.models import find_model
from loraport.comparing.opening import DeviceSetup, opened
from loraport.comparing.probe import PUSH, _grey, dose
from loraport.comparing.prompts import Prompt
from loraport.comparing.rendering import Shot, render, set_sampling, with_loras
from loraport.comparing.settings import COLOURS
from loraport.comparing.variants import Placed
from loraport.errors import LoraportError, UnsupportedError, UsageError
from loraport.models.families import families
from loraport.sampling.schedule import SamplingSettings
from networks import NETWORKS

pytestmark = pytest.mark.filterwarnings("ignore")
RED = PUSH * np.array(COLOURS["red"])
PIPELINES = {"z_image": tiny_pipelines.z_image} | tiny_videos.PIPELINES | tiny_stills.PIPELINES
WITH_IMAGE = {"wan_i2v": tiny_pipelines.wan_i2v, "cogvideox_i2v": tiny_videos.cogvideox_i2v}
CPU = DeviceSetup.of("cpu", "auto", "none")


def test_the_constant_direction_is_that_of_least_squares():
    rows = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, 0, 1, 0, 0])
    seen = Inputs()
    seen.add(rows[:200])
    seen.add(rows[200:])
    found, spread = seen.constant()
    best = torch.linalg.lstsq(rows, torch.ones(500, 1)).solution[:, 0]
    assert torch.allclose(found / found.norm(), best / best.norm(), atol=2e-3)
    made = rows @ found
    assert made.mean().item() == pytest.approx(1, abs=1e-5)
    assert spread == pytest.approx(made.std(correction=0).item(), rel=1e-3)


def test_dose_is_the_share_of_the_colour():
    plain = np.full((1, 4, 4, 3), 100, np.uint8)
    tinted = plain.copy()
    tinted[..., 0] += 51  # of 255: all of it
    assert dose(plain, tinted, "red") == pytest.approx((1, 0))
    tinted[..., 1] += 51
    assert dose(plain, tinted, "red") == pytest.approx((1, 1))
    assert dose(plain, plain, "light") == (0, 0)


@pytest.mark.slow
def test_where_the_last_layer_is_given_a_constant_the_latents_move_by_the_colour_exactly(tmp_path):
    tiny_pipelines.wan(tmp_path / "model")
    file = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    state = load_file(file)
    # norm(x) (1 + scale) + shift: without the time, and with a scale of -1, the shift alone is left.
    shift = state["scale_shift_table"][:, 0]
    state["scale_shift_table"] = torch.stack([shift, -torch.ones_like(shift)], 1)
    for key in state:
        if key.startswith("condition_embedder.time_embedder.linear_2"):
            state[key] = torch.zeros_like(state[key])
    save_file(state, file)
    model = find_model(tmp_path / "model", "source")
    shot = Shot(Prompt("a cat sits"), 3, height=32, width=32, frames=5)
    for settings in (SamplingSettings(steps=3, guidance=4), SamplingSettings(steps=3, guidance=1, sampler="renoise")):
        with opened(model, CPU) as pipeline:
            put = outputs_for(pipeline, model.family, settings, shot, RED)
            wanted = making_probe._colour(pipeline, 5, RED)
            set_sampling(pipeline, settings)
            with making_probe.inputs_of(pipeline, model.family) as seen:
                before = _latents(pipeline, model.family, settings, shot)
            read, spread = seen["high"].constant()
            assert spread == pytest.approx(0, abs=2e-2)
            write_probe(tmp_path / "probe.safetensors", model.family, read, put)
            with with_loras(pipeline, model.family, [Placed(tmp_path / "probe.safetensors")]):
                after = _latents(pipeline, model.family, settings, shot)
            again = _latents(pipeline, model.family, settings, shot)
        moved = (after - before).mean((0, 2, 3, 4))
        assert torch.allclose(moved, wanted, rtol=1e-2, atol=1e-3 * wanted.abs().max().item())
        assert (after - before).std((0, 2, 3, 4)).max() < 1e-2 * wanted.abs().max()
        assert torch.equal(again, before)  # nothing stays on the pipeline


def _latents(pipeline, family, settings, shot):
    """What the decoder is given at the end of a real sampling."""
    kept = []
    decode = pipeline.vae.decode

    def look(latents, *rest, **more):
        kept.append(latents.clone())
        return decode(latents, *rest, **more)

    pipeline.vae.decode = look
    try:
        render(pipeline, family, settings, shot)
    finally:
        del pipeline.vae.decode
    return kept[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES | WITH_IMAGE)
def test_in_every_family_the_probe_moves_the_latents_by_the_colour(tmp_path, name):
    """The real pipeline with the real LoRA on it, but for a constant that the last layer is given."""
    if name == "wan_i2v":
        pytest.importorskip("ftfy", reason="diffusers needs it for Wan's images")
    model = find_model((PIPELINES | WITH_IMAGE)[name](tmp_path / "model"), "source")
    settings = SamplingSettings(steps=1 if "cogvideox" in name else 3)  # velocities of a rotation add up to more
    image = _grey(tmp_path / "grey.png") if name in WITH_IMAGE else None
    shot = Shot(Prompt("a cat sits", image), 3, height=32, width=32, frames=9)
    with opened(model, CPU, with_image=name in WITH_IMAGE) as pipeline:
        put = outputs_for(pipeline, model.family, settings, shot, RED)
        width = making_probe.last_layer(pipeline, model.family).in_features
        constant = torch.randn(width, generator=torch.Generator().manual_seed(0))

        def given(module, inputs):
            return (constant.expand_as(inputs[0]),)

        def latents():
            handle = making_probe.last_layer(pipeline, model.family).register_forward_pre_hook(given)
            try:
                return _latents(pipeline, model.family, settings, shot)
            finally:
                handle.remove()

        before = latents()
        write_probe(tmp_path / "probe.safetensors", model.family, constant / (constant @ constant), put)
        with with_loras(pipeline, model.family, [Placed(tmp_path / "probe.safetensors")]):
            after = latents()
        wanted = making_probe._colour(pipeline, before.ndim, RED)
    apart = (0, *range(2, before.ndim))
    moved = (after - before).mean(apart)
    size = wanted.abs().max().item()
    assert size > 0
    assert torch.allclose(moved, wanted, rtol=1e-2, atol=1e-3 * size)
    assert (after - before).std(apart).max() < 1e-2 * size


@pytest.mark.slow
def test_a_first_frame_that_the_network_does_not_make_is_no_picture_of_its_own(tmp_path):
    """HunyuanVideo-I2V puts the image in its place, whatever the network says of it."""
    model = find_model(tiny_videos.hunyuan_video_i2v(tmp_path / "model"), "source")
    shot = Shot(Prompt("a cat sits", _grey(tmp_path / "grey.png")), 3, height=32, width=32, frames=9)
    with (
        opened(model, CPU, with_image=True) as pipeline,
        pytest.raises(UnsupportedError, match="as a separate picture"),
    ):
        outputs_for(pipeline, model.family, SamplingSettings(steps=3), shot, RED)


@pytest.mark.slow
def test_a_decoder_with_a_channel_of_what_covers_is_asked_too():
    """That of Qwen-Image-2.1, of which no whole pipeline can be built here: its processor needs torchvision."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKLQwenImage21(
            base_dim=8, decoder_base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ).eval()

    class Pipeline:
        pass

    pipeline = Pipeline()
    pipeline.vae = vae
    shift = making_probe._colour(pipeline, 5, RED)
    shades = [torch.tensor([n * 0.2, 0, 0, 1.0]).view(1, 4, 1, 1, 1).expand(1, 4, 1, 128, 128) for n in (-1, 1)]
    with torch.no_grad():
        low, high = (vae.encode(shade).latent_dist.mode()[0, :, 0, 2:6, 2:6].mean((1, 2)) for shade in shades)
    assert torch.allclose(shift, high - low, atol=1e-5)
    assert shift.abs().max() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_layer_is_a_linear_one_and_whole_in_a_lora(name):
    family = families()[NETWORKS[name].family]
    if not family.diffusers.output:
        pytest.skip("a pipeline that no prompt is enough for")
    layer = networks.build(name).get_submodule(family.spell(family.diffusers.output, "diffusers"))
    assert isinstance(layer, torch.nn.Linear)
    assert family.place(family.diffusers.output, family.universal).index is None


def test_all_families_with_a_pipeline_have_a_probe():
    runs = {
        name: one.diffusers
        for name, one in families().items()
        if "Modular" not in (one.diffusers.pipeline or "Modular")
    }
    assert all(one.output for one in runs.values())


@pytest.mark.slow
def test_the_dose_of_a_pair_and_of_a_model_with_itself(tmp_path):
    with torch.random.fork_rng():
        vae = tiny_pipelines.taught(tiny_pipelines.still_vae(), 200)
        tiny_pipelines.z_image(tmp_path / "source", vae=vae)
        tiny_pipelines.z_image(tmp_path / "target", drift=0.3, vae=vae)
    sampling = SamplingSettings(steps=3, guidance=0)
    given = {
        "source": tmp_path / "source", "output": tmp_path / "probe.safetensors", "prompt": "a red cat",
        "settings": loraport.CompareSettings(height=16, width=16), "source_sampling": sampling, "device": "cpu",
        "target_sampling": sampling,
    }  # fmt: skip
    same = loraport.probe(**given, target=tmp_path / "source")
    assert same.ratio == 1
    assert same.source > 0.3
    with pytest.raises(LoraportError, match="exists"):
        loraport.probe(**given, target=tmp_path / "target")
    other = loraport.probe(**given, target=tmp_path / "target", overwrite=True)
    assert other.source == same.source
    assert 0.2 < other.ratio < 3
    assert other.ratio != 1
    stem = "diffusion_model.all_final_layer.2-1.linear"  # the names that all programs read in LoRAs of Z-Image
    assert set(load_file(tmp_path / "probe.safetensors")) == {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
    assert "Z-Image" in str(loraport.inspect(tmp_path / "probe.safetensors"))


@pytest.mark.slow
def test_a_decoder_that_shows_no_colour_is_said_and_leaves_no_file(videos, tmp_path):
    sampling = SamplingSettings(steps=2, guidance=1)
    for height, says in ((32, "does not show the probe"), (33, "refuses these settings")):
        with pytest.raises(LoraportError, match=says):
            loraport.probe(
                source=videos / "source", target=videos / "target", output=tmp_path / "probe.safetensors",
                settings=loraport.CompareSettings(height=height, width=32, frames=1), source_sampling=sampling,
                target_sampling=sampling, device="cpu",
            )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_colour_that_there_is_not(tmp_path):
    with pytest.raises(UsageError, match="no such colour"):
        loraport.probe(source=tmp_path, output=tmp_path / "x.safetensors", colour="mauve")
