"""`loraport compare` on image-to-video pipelines: the pixels of diffusers' own calls, and what is refused."""

import contextlib
import dataclasses
import html
import importlib.util
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import tiny_pipelines
import tiny_videos
import tinywan
from loraport.comparing.images import FirstFrame
from loraport.comparing.models import NEEDS, find_model
from loraport.comparing.opening import DeviceSetup, _pipeline_class, opened
from loraport.comparing.prompts import Prompt
from loraport.comparing.rendering import Shot, as_large, render, set_sampling, with_loras
from loraport.comparing.variants import Placed
from loraport.engine.events import Warned
from loraport.errors import LoraportError, MismatchError, UnsupportedError, UsageError
from loraport.sampling.schedule import SamplingSettings

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
CPU = DeviceSetup(torch.device("cpu"), torch.float32)
TWO = SamplingSettings(steps=2, guidance=2)
SIZE = {"height": 16, "width": 16}
CALL = {**SIZE, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 2.0}
TEXT = "a cat sits"


runs_wan = pytest.mark.skipif(importlib.util.find_spec("ftfy") is None, reason="diffusers needs ftfy for Wan's images")


def painted(file, seed=0, size=(24, 16)):
    from PIL import Image

    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Source and target as Wan2.1-I2V, a LoRA that has layers for the image and one that has none, and images."""
    made = tmp_path_factory.mktemp("i2v")
    tiny_pipelines.wan_i2v(made / "source")
    tiny_pipelines.wan_i2v(made / "target", drift=0.3)
    tiny_pipelines.wan_lora(made / "carried.safetensors", size=0.3)
    state = load_file(tiny_pipelines.wan_lora(made / "lora.safetensors"))
    for part in ("k", "v"):
        state |= {
            key.replace(f"cross_attn.{part}.", f"cross_attn.{part}_img."): 0.8 * value for key, value in state.items()
        }
    save_file(state, made / "lora.safetensors")
    for number in range(3):
        painted(made / f"image{number}.png", number)
    return made


def run(folder, output, **changes):
    given = {
        "source": folder / "source", "target": folder / "target", "output": output, "prompts": [TEXT],
        "images": folder / "image0.png", "settings": loraport.CompareSettings(frames=5, **SIZE),
        "source_sampling": TWO, "target_sampling": TWO, "device": "cpu",
    }  # fmt: skip
    return loraport.compare(folder / "lora.safetensors", **(given | changes))


def by_diffusers(kind, folder, loras, image, seed=0, **call):
    """The frames by a pipeline, its loader, and a call, with LoRAs at strengths."""
    with torch.random.fork_rng(devices=[]):
        pipe = kind.from_pretrained(folder, torch_dtype=torch.float32)
        for name, (file, strength, more) in loras.items():
            pipe.load_lora_weights(load_file(file), adapter_name=name, **more)
            (pipe.transformer_2 if more else pipe.transformer).set_adapters(name, strength)
        torch.manual_seed(seed)
        made = pipe(
            image=diffusers.utils.load_image(str(image)), prompt=TEXT, **call, output_type="np",
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    return np.rint(255 * np.asarray(made.frames[0]).clip(0, 1)).astype(np.uint8)


def clip(report, *, loras, image):
    """The frames of the only clip with so many LoRAs that begins with an image."""
    found = []
    for file in (report.folder / "clips").glob("*.npz"):
        with np.load(file) as held:
            made = json.loads(str(held["made_of"]))
            if list(made["loras"].values()) == loras and made["shot"]["image"] == FirstFrame.of(image).digest[:32]:
                found.append(held["frames"])
    (frames,) = found
    return frames


@runs_wan
def test_clips_are_those_of_diffusers_and_are_kept_by_their_image(folder, tmp_path):
    settings = loraport.CompareSettings(frames=5, strengths="0.75", **SIZE)
    first, second = folder / "image0.png", painted(tmp_path / "image.png", 7)
    report = run(folder, tmp_path / "out", settings=settings)
    kind, loras = diffusers.WanImageToVideoPipeline, {"style": (folder / "lora.safetensors", 0.75, {})}
    expected = by_diffusers(kind, folder / "target", loras, first, **CALL)
    assert np.array_equal(clip(report, loras=[0.75], image=first), expected)
    # Another image makes other clips beside those that are there; the same one under another name does not.
    copied = tmp_path / "copy.png"
    copied.write_bytes(first.read_bytes())
    again = run(folder, tmp_path / "out", settings=settings, images=[copied, second])
    assert (again.made, again.found) == (3, 3)
    told = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))
    assert told["images"] == [{"file": str(f), "sha256": FirstFrame.of(f).digest} for f in (copied, second)]
    frames = clip(report, loras=[], image=first)
    off = again.clips["target", 0, 0]["first_frame"]
    given = np.asarray(diffusers.utils.load_image(str(first)).resize((16, 16), 1), np.float64)  # by Lanczos, as there
    assert off == pytest.approx(np.sqrt(((given - frames[0]) ** 2).mean()))
    page = html.unescape((tmp_path / "out" / "index.html").read_text("utf-8"))
    assert "begins with copy.png" in page
    assert FirstFrame.of(first).digest in page
    assert "first frame" in page


def test_what_does_not_go_together_is_said_before_anything_is_loaded(folder, tmp_path):
    plain = tiny_pipelines.wan(tmp_path / "plain")
    asked = [
        ({"images": ()}, UsageError, r"image, and none is given.*WanImageToVideoPipeline.*--image FILE"),
        ({"source": plain, "target": plain}, UsageError, r"prompt alone.*WanPipeline.*leave --image out"),
        ({"target": plain}, MismatchError, "channels in: 12 and 4"),
        ({"target": plain / "transformer"}, MismatchError, "channels in: 12 and 4"),
        ({"images": [folder / "image0.png", folder / "image1.png"], "prompts": ["a", "b", "c"]}, UsageError, "belongs"),
    ]
    for changes, error, words in asked:
        with pytest.raises(error, match=f"(?s){words}"):
            run(folder, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_another_pipeline_of_the_family_is_taken_if_a_prompt_and_an_image_are_enough(folder, tmp_path):
    """Which is seen when it is loaded, since nobody says so before."""
    for part in (folder / "source").iterdir():
        if part.is_dir():
            (tmp_path / part.name).symlink_to(part, target_is_directory=True)
    index = json.loads((folder / "source" / "model_index.json").read_text("utf-8"))
    taken = {
        "WanVACEPipeline": (True, False), "WanAnimatePipeline": (False, False),
        "LTXImageToVideoPipeline": (False, True), "NobodysPipeline": (True, True),
    }  # fmt: skip
    for name, content in taken.items():
        (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": name}), "utf-8")
        model = find_model(tmp_path, "source")
        for with_image, runs in zip((False, True), content, strict=True):
            with contextlib.nullcontext() if runs else pytest.raises(UnsupportedError, match="take"):
                assert _pipeline_class(model, with_image=with_image)
    (tmp_path / "model_index.json").write_text("[]", "utf-8")
    with pytest.raises(LoraportError, match="not an object"):
        find_model(tmp_path, "source")


@runs_wan
def test_an_image_that_would_be_stretched_is_said_before_anything_is_loaded(folder, tmp_path):
    told = []

    def listen(event):
        told.append(event)
        raise KeyboardInterrupt

    for settings in (loraport.CompareSettings(**SIZE), loraport.CompareSettings()):  # the pipeline's own size
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "out", settings=settings, on_event=listen)
    assert all(isinstance(event, Warned) for event in told)
    assert ["16 x 16." in told[0].message, "832 x 480." in told[1].message] == [True, True]


def test_a_package_that_the_pipeline_asks_for_late_is_said_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(NEEDS, "WanImageToVideoPipeline", "nothing_of_that_name")
    with pytest.raises(UsageError, match="pip install nothing_of_that_name"):
        run(folder, tmp_path / "out")


def test_the_command_line_takes_images(folder, tmp_path, capsys):
    from loraport.cli.main import app

    (tmp_path / "prompts.txt").write_text("a\nb\n", encoding="utf-8")
    words = [
        "compare", "--source", folder / "source", "--target", folder / "target", "--target-steps", "2",
        "--lora", folder / "lora.safetensors", "--device", "cpu", "-o", tmp_path / "out",
    ]  # fmt: skip
    images = ["--image", folder / "image0.png", "--image", folder / "image1.png", "--image", folder / "image2.png"]
    cases = {
        "as many images as prompts": [*images, "--prompts", tmp_path / "prompts.txt"],
        "an image has no prompt": images,
        "given twice": [*images, "--prompts", tmp_path / "prompts.txt", "--prompt", "c"],
        "the prompt is not given": [],
        "none is given": ["--prompt", "c", "--prompt", "d"],
    }
    for says, more in cases.items():
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in (*words, *more)])
        assert ended.value.code in (2, 5)
        assert says in capsys.readouterr().err


@pytest.mark.slow
@runs_wan
def test_folders_and_texts_from_the_command_line(folder, tmp_path, capsys):
    from loraport.cli.main import app

    frames = tmp_path / "frames"
    frames.mkdir()
    for number in (1, 2):
        painted(frames / f"{number}.png", number, (16, 16))
        (frames / f"{number}.txt").write_text(TEXT, encoding="utf-8")
    words = [
        "compare", "--source", folder / "source", "--target", folder / "target", "--source-steps", "2",
        "--target-times", "1000,757", "--target-sampler", "renoise", "--target-guidance", "1",
        "--lora", folder / "lora.safetensors", "--transferred", folder / "carried.safetensors", "--image", frames,
        "--frames", "5", "--height", "16", "--width", "16", "--device", "cpu", "-o", tmp_path / "out", "--json",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        app([str(word) for word in words])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["made"], told["prompts"]) == (8, [TEXT, TEXT])
    assert [image["file"] for image in told["images"]] == [str(frames / "1.png"), str(frames / "2.png")]
    assert all(one["first_frame"] > 0 for one in told["clips"])
    page = html.unescape((tmp_path / "out" / "index.html").read_text("utf-8"))
    for number in (1, 2):
        assert f'<option value="{number - 1}">{number}.png: {TEXT}</option>' in page
    assert page.count("begins with") == 4  # seen, and said


@pytest.mark.slow
@runs_wan
def test_an_interrupted_run_goes_on(folder, tmp_path):
    images = [folder / f"image{number}.png" for number in range(3)]

    def stop(event):
        if getattr(event, "done", 0) == 5 and "prompt" in event.message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", images=images, on_event=stop)
    resumed = run(folder, tmp_path / "out", images=images)
    assert (resumed.made, resumed.found) == (5, 4)
    assert run(folder, tmp_path / "fresh", images=images).scores == resumed.scores


@pytest.mark.slow
@runs_wan
def test_both_experts_of_an_image_to_video_model(folder, tmp_path):
    """Wan2.2-I2V-A14B, which sees the image in its input alone; with a LoRA that was made for text-to-video."""
    tiny_pipelines.wan_i2v(tmp_path / "model", second=10, boundary=0.8)
    for name, size in (("style_high_noise", 0.5), ("style_low_noise", 0.7)):
        tiny_pipelines.wan_lora(tmp_path / f"{name}.safetensors", size=size)
    settings = SamplingSettings(steps=2, guidance=1)
    report = loraport.compare(
        tmp_path / "style_high_noise.safetensors", source=tmp_path / "model", target=tmp_path / "model",
        output=tmp_path / "out", prompts=[TEXT], images=folder / "image0.png",
        settings=loraport.CompareSettings(frames=5, **SIZE), source_sampling=settings, target_sampling=settings,
        device="cpu",
    )  # fmt: skip
    assert report.made + report.found == 3
    loras = {
        expert: (tmp_path / f"style_{expert}_noise.safetensors", 1.0, more)
        for expert, more in (("high", {}), ("low", {"load_into_transformer_2": True}))
    }
    kind, call = diffusers.WanImageToVideoPipeline, CALL | {"guidance_scale": 1.0}
    expected = by_diffusers(kind, tmp_path / "model", loras, folder / "image0.png", **call)
    assert np.array_equal(clip(report, loras=[1.0, 1.0], image=folder / "image0.png"), expected)


def _expanding(path, **more):
    return tiny_pipelines.wan(path, expand=True, **more)


BOTH_WAYS = {"wan": _expanding, "ltx_video": tiny_videos.ltx_video, "ltx2": tiny_videos.ltx2}
"""Models that make videos of a prompt alone and with an image, as the folders of their published ones are."""
WITH_IMAGE = BOTH_WAYS | {"cogvideox": tiny_videos.cogvideox_i2v, "hunyuan_video": tiny_videos.hunyuan_video_i2v}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_IMAGE)
def test_other_models_begin_with_the_image_as_in_diffusers(folder, tmp_path, name):
    model = find_model(WITH_IMAGE[name](tmp_path / "model"), "source")
    package = NEEDS.get(model.by_image, "torch")
    if importlib.util.find_spec(package) is None:
        with pytest.raises(UsageError, match=f"pip install {package}"):
            model.pipeline(with_image=True)
        pytest.skip(f"{package} is not there, and the pipeline needs it")
    assert bool(model.by_prompt) == (name in BOTH_WAYS)
    if name == "wan":
        lora = tiny_pipelines.wan_lora(tmp_path / "lora.safetensors")
    else:
        lora = tiny_videos.lora(tmp_path / "model", tmp_path / "lora.safetensors")
    image = FirstFrame.of(folder / "image0.png")
    shot = Shot(Prompt(TEXT, image), 3, height=32, width=32, frames=9)
    settings = SamplingSettings(steps=2)
    with opened(model, CPU, with_image=True) as pipeline:
        with with_loras(pipeline, model.family, [Placed(lora, 0.5)]):
            found = render(pipeline, model.family, settings, shot)
        alone = render(pipeline, model.family, settings, shot)
    expected = by_diffusers(
        getattr(diffusers, model.family.diffusers.image_pipeline), tmp_path / "model", {"style": (lora, 0.5, {})},
        image.file, seed=3, height=32, width=32, num_frames=9, num_inference_steps=2,
    )  # fmt: skip
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, alone)
    if model.by_prompt:
        with opened(model, CPU) as pipeline:
            shot = dataclasses.replace(shot, prompt=Prompt(TEXT))
            assert render(pipeline, model.family, settings, shot).shape == found.shape


@pytest.mark.slow
@runs_wan
def test_a_transformer_alone_takes_the_image_encoder_of_the_source(folder):
    base, whole = (find_model(folder / name, role) for name, role in (("source", "source"), ("target", "target")))
    inside = folder / "target" / "transformer"
    alone = [find_model(path, "target", base) for path in (inside, next(inside.glob("*.safetensors")))]
    shot = Shot(Prompt(TEXT, FirstFrame.of(folder / "image0.png")), 0, frames=5, **SIZE)
    frames = []
    for model in (whole, *alone):
        with opened(model, CPU, with_image=True) as pipeline:
            frames.append(render(pipeline, model.family, TWO, shot))
            del pipeline
    assert all(np.array_equal(frames[0], each) for each in frames[1:])


@pytest.mark.slow
@runs_wan
@pytest.mark.parametrize("how", ["model", "group"])
def test_what_waits_beside_the_device_makes_the_same_clip(folder, how):
    """With the image's encoder among it. The device is the processor here, which `--offload` itself refuses; diffusers
    then takes no LoRA after the first, and accelerate cannot go on layer by layer.
    """
    model = find_model(folder / "source", "source")
    shot = Shot(Prompt(TEXT, FirstFrame.of(folder / "image0.png")), 0, frames=5, **SIZE)
    frames = []
    for offload in ("none", how):
        place = DeviceSetup(torch.device("cpu"), torch.float32, offload)
        with opened(model, place, with_image=True) as pipeline:
            loras = [Placed(folder / "lora.safetensors")] if how == "group" else []
            with with_loras(pipeline, model.family, loras):
                frames.append(render(pipeline, model.family, TWO, shot))
            del pipeline
    assert np.array_equal(*frames)


@pytest.mark.slow
@runs_wan
def test_in_bfloat16_image_and_networks_meet(folder):
    model = find_model(folder / "source", "source")
    shot = Shot(Prompt(TEXT, FirstFrame.of(folder / "image0.png")), 0, frames=5, **SIZE)
    with opened(model, DeviceSetup(torch.device("cpu"), torch.bfloat16), with_image=True) as pipeline:
        set_sampling(pipeline, TWO)
        frames = render(pipeline, model.family, TWO, shot)
    assert frames.shape == (5, 16, 16, 3)
    assert as_large(shot.prompt.image, frames).shape == (1, 16, 16, 3)


@pytest.mark.slow
@runs_wan
def test_the_dose_of_models_that_begin_with_an_image_and_of_two_experts(folder, tmp_path, monkeypatch):
    """The probe is made for each transformer, and moves the latents by the colour where its layer is given a 1."""
    from loraport.comparing import probe

    monkeypatch.setattr(probe, "LEAST", 0.0)  # a decoder of random weights shows no colour in particular
    tiny_pipelines.wan_i2v(tmp_path / "model", second=10, boundary=0.8)
    settings = SamplingSettings(steps=3, guidance=1)
    given = {
        "source": tmp_path / "model", "target": tmp_path / "model", "output": tmp_path / "red.safetensors",
        "settings": loraport.CompareSettings(frames=5, **SIZE), "source_sampling": settings,
        "target_sampling": settings, "device": "cpu",
    }  # fmt: skip
    found = loraport.probe(**given)
    assert found.ratio == 1
    assert [file.name for file in (found.file, found.file_low)] == [
        f"red_{e}_noise.safetensors" for e in ("high", "low")
    ]
    high, low = (load_file(file) for file in (found.file, found.file_low))
    assert (
        set(high) == set(low) == {"diffusion_model.head.head.lora_A.weight", "diffusion_model.head.head.lora_B.weight"}
    )
    a, b = "diffusion_model.head.head.lora_A.weight", "diffusion_model.head.head.lora_B.weight"
    assert torch.equal(high[b], low[b])  # which output is which colour
    assert not torch.allclose(high[a], low[a])  # what reaches the layer
    with pytest.raises(LoraportError, match="exists"):
        loraport.probe(**given)
    one = SamplingSettings(steps=1, guidance=1)
    with pytest.raises(LoraportError, match="none of the steps"):
        loraport.probe(**(given | {"source_sampling": one, "overwrite": True}))
    assert 0 <= found.spread < 1  # 0 to rounding, where few places of the layer decide many directions
    assert found.to_json()["file_low"] == str(found.file_low)
    single = loraport.probe(**(given | {"source": folder / "source", "target": folder / "source"}))
    assert single.file_low is None
    assert load_file(single.file)[a].shape[1] == tinywan.WIDTH
