"""`loraport compare` on whole pipelines of diffusers' own classes: what is made, what is kept, what is refused."""

import html
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import tiny_judges
import tiny_stills
import tiny_videos
from loraport.comparing.clips import ClipFolder
from loraport.comparing.models import _check_runs, find_model
from loraport.comparing.prompts import Prompt, read_prompts
from loraport.comparing.rendering import Shot, render, set_sampling
from loraport.engine.events import Step
from loraport.errors import FileError, MismatchError, UnsupportedError, UsageError
from loraport.metrics import amt
from loraport.sampling.schedule import SamplingSettings

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
PIPELINES = tiny_videos.PIPELINES | tiny_stills.PIPELINES
SIZE = {"height": 16, "width": 16}
SOURCE, TARGET = SamplingSettings(steps=2, guidance=4), SamplingSettings(steps=2, guidance=0)


def run(folder, output, **changes):
    given = {
        "source": folder / "source", "target": folder / "target", "transferred": [folder / "carried.safetensors"],
        "output": output, "prompts": ["a cat sits"], "settings": loraport.CompareSettings(**SIZE),
        "source_sampling": SOURCE, "target_sampling": TARGET, "device": "cpu",
    }  # fmt: skip
    return loraport.compare(folder / "lora.safetensors", **(given | changes))


def clips_of(report):
    """The frames of each variant by key, from the folder."""
    found = {}
    for file in (report.folder / "clips").glob("*.npz"):
        with np.load(file) as held:
            made = json.loads(str(held["made_of"]))
            found[json.dumps(made["loras"]), made["model"]] = (file, held["frames"], made)
    return found


def test_stills_are_compared_and_what_is_there_is_kept(stills, tmp_path):
    report = run(stills, tmp_path / "out")
    assert [one.key for one in report.variants] == ["source+lora", "target", "target+lora@1", "target+file1"]
    assert (report.made, report.found) == (4, 0)
    assert all(np.isfinite(score.mean) for row in report.scores.values() for score in row.values())
    assert "frame_difference" not in report.scores["target"]  # a still
    assert report.scores["target"]["distance"].low is None  # one clip has no interval
    told = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))
    assert told["variants"][2]["scores"]["distance"]["mean"] == report.scores["target+lora@1"]["distance"].mean
    assert (tmp_path / "out" / "index.html").stat().st_size > 5000
    assert told["size"] == [1, SIZE["height"], SIZE["width"]]
    assert (told["precision"], told["device"], told["negative"]) == ("float32", "cpu", None)
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert f"{SIZE['width']} x {SIZE['height']}" in page
    assert "on cpu, weights in float32" in page
    assert ("not measured" in page) == bool(told["not_measured"])
    assert all(words in html.unescape(page) for words in told["not_measured"].values())
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "clips").iterdir()}
    torn, gone = sorted(before)[:2]
    torn.write_bytes(torn.read_bytes()[:100])
    gone.unlink()
    settings = loraport.CompareSettings(strengths="0.5,1", **SIZE)
    again = run(stills, tmp_path / "out", settings=settings)
    assert (again.made, again.found) == (3, 2)  # the torn, the lost, and that of the new strength
    assert {file: file.stat().st_mtime_ns for file in before if file not in (torn, gone)}.items() <= before.items()
    assert again.scores["target+lora@1"] == report.scores["target+lora@1"]
    assert again.scores["target+lora@0.5"]["distance"].mean != report.scores["target+lora@1"]["distance"].mean


def test_the_clips_are_those_of_diffusers(stills, tmp_path):
    """Another way to the same pixels: the pipeline, its loader, and a call."""
    report = run(stills, tmp_path / "out", settings=loraport.CompareSettings(strengths="0.75", **SIZE))
    pipe = diffusers.ZImagePipeline.from_pretrained(stills / "target", torch_dtype=torch.float32)
    pipe.load_lora_weights(stills, weight_name="lora.safetensors", adapter_name="style")
    pipe.set_adapters("style", 0.75)
    made = pipe(
        "a cat sits", num_inference_steps=2, guidance_scale=0.0, **SIZE, output_type="np",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    expected = np.rint(255 * made.images[0]).astype(np.uint8)
    found = [frames for _, frames, made in clips_of(report).values() if list(made["loras"].values()) == [0.75]]
    assert len(found) == 1
    assert np.array_equal(found[0][0], expected)


def test_what_a_name_says_of_the_sampling_is_said_before_any_clip(stills, tmp_path):
    told, steps = [], SamplingSettings(steps=2)

    def listen(event):
        told.append(event.message)
        if isinstance(event, Step):
            raise KeyboardInterrupt

    for name in ("Z-Image-Turbo", "mine"):
        (tmp_path / name).symlink_to(stills / "target", target_is_directory=True)
        with pytest.raises(KeyboardInterrupt):
            run(stills, tmp_path / "out", target=tmp_path / name, target_sampling=steps, on_event=listen)
    first, *others = told
    assert "Z-Image-Turbo, as the example of ZImagePipeline" in first
    assert "--target-steps" in first
    assert others == ["loading the source"] * 2


def test_what_a_pipeline_takes_not_is_said_before_any_clip(stills, tmp_path):
    told = []

    def listen(event):
        told.append(event.message)
        if isinstance(event, Step):
            raise KeyboardInterrupt

    settings = loraport.CompareSettings(frames=9, negative="red", **SIZE)
    models = {"source": stills / "source", "target": stills / "target", "settings": settings, "target_sampling": TARGET}
    with pytest.raises(KeyboardInterrupt):
        run(stills, tmp_path / "out", settings=settings, on_event=listen)
    with pytest.raises(KeyboardInterrupt):
        loraport.probe(**models, output=tmp_path / "red.safetensors", device="cpu", on_event=listen)
    ignored = "ZImagePipeline takes no --frames, so it is ignored."
    assert told == [
        ignored, "loading the source",
        ignored, "asking the pipeline which output is which colour",
    ]  # fmt: skip


@pytest.mark.slow
def test_videos_from_the_command_line(videos, tmp_path, capsys):
    from loraport.cli.main import app

    (tmp_path / "prompts.txt").write_text("a cat sits\n\na red dog <b>runs</b>\n", encoding="utf-8")
    with torch.random.fork_rng():
        clip = tiny_judges.clip_folder(tmp_path / "clip")
    save_file({"weight": torch.ones(1, 20), "bias": torch.zeros(1)}, tmp_path / "aesthetic.safetensors")
    still = {name: torch.zeros(shape) for name, shape in amt.shapes().items()}
    save_file(still, tmp_path / "amt.safetensors")
    words = [
        "compare", "--source", videos / "source", "--target", videos / "target",
        "--lora", videos / "lora.safetensors",
        "--transferred", videos / "carried.safetensors", "--strengths", "0.75,1", "--prompts", tmp_path / "prompts.txt",
        "--seeds", "2", "--frames", "5", "--height", "32", "--width", "32", "--source-steps", "2",
        "--source-shift", "5",
        "--target-times", "1000,757", "--target-sampler", "renoise", "--target-guidance", "1", "--source-alone",
        "--device", "cpu", "-o", tmp_path / "out", "--json", "--clip", clip, "--fps", "12",
        "--aesthetic", tmp_path / "aesthetic.safetensors", "--amt", tmp_path / "amt.safetensors",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        app([str(word) for word in words])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["made"] == 6 * 4
    assert [one["key"] for one in told["variants"]] == [
        "source+lora", "source", "target", "target+lora@0.75", "target+lora@1", "target+file1"
    ]  # fmt: skip
    for one in told["variants"]:
        assert all(score["low"] <= score["mean"] <= score["high"] for score in one["scores"].values())
        assert {"frame_difference", "aesthetic", "background_consistency", "smoothness"} <= set(one["scores"])
    assert told["fps"] == 12
    assert len(told["clips"]) == 6 * 4
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "<b>runs" not in page
    assert "motion smoothness" in page
    assert "&lt;b&gt;runs" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_other_families_run_from_end_to_end(tmp_path, name):
    """Source and target, the LoRA on both, another one on the target, and their numbers."""
    source = PIPELINES[name](tmp_path / "source")
    PIPELINES[name](tmp_path / "target", drift=0.3)
    tiny_videos.lora(source, tmp_path / "lora.safetensors")
    tiny_videos.lora(source, tmp_path / "carried.safetensors", size=0.2)
    report = run(
        tmp_path, tmp_path / "out", settings=loraport.CompareSettings(frames=9, height=32, width=32),
        source_sampling=SamplingSettings(steps=2), target_sampling=SamplingSettings(steps=2),
    )  # fmt: skip
    assert report.made == 4
    rates = {"ltx_video": 25, "hunyuan_video": 24, "ltx2": 24, "cogvideox": 8}
    assert report.fps == rates.get(name, 16)
    assert report.scores["target+lora@1"]["distance"].mean > 0
    count = 9 if name in tiny_videos.PIPELINES else 1
    assert {frames.shape for _, frames, _ in clips_of(report).values()} == {(count, 32, 32, 3)}
    assert report.page.stat().st_size < 5_000_000


@pytest.mark.slow
def test_an_interrupted_run_goes_on(videos, tmp_path):
    size = loraport.CompareSettings(frames=5, height=32, width=32)
    more = {
        "settings": size,
        "source_sampling": SamplingSettings(steps=2),
        "target_sampling": SamplingSettings(steps=2),
    }

    def stop(event):
        if getattr(event, "done", 0) == 3 and "prompt" in event.message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(videos, tmp_path / "out", on_event=stop, **more)
    assert not (tmp_path / "out" / "index.html").exists()
    resumed = run(videos, tmp_path / "out", **more)
    assert (resumed.made, resumed.found) == (2, 2)
    fresh = run(videos, tmp_path / "fresh", **more)
    assert fresh.scores == resumed.scores


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_transformer_alone_takes_the_rest_of_the_source(stills, tmp_path, kind):
    whole = run(stills, tmp_path / "whole")
    alone = stills / "target" / "transformer"
    if kind == "file":
        save_file(load_file(alone / "diffusion_pytorch_model.safetensors"), tmp_path / "target.safetensors")
        alone = tmp_path / "target.safetensors"
    assert run(stills, tmp_path / "out", target=alone).scores == whole.scores


@pytest.mark.slow
def test_a_distillation_lora_makes_the_target(stills, tmp_path):
    """Source and target are then one model, and at strength 0 of the distillation one clip."""
    carried = stills / "carried.safetensors"
    report = run(
        stills, tmp_path / "out", target=None, target_lora=f"{carried}:0.5", transferred=(), target_sampling=SOURCE
    )
    assert report.scores["target+lora@1"]["distance"].mean > 0
    none = run(
        stills, tmp_path / "out", target=None, target_lora=f"{carried}:0", transferred=(), target_sampling=SOURCE
    )
    assert none.found == 1  # that of the source
    assert none.scores["target+lora@1"]["distance"].mean == 0


def test_a_lora_of_another_size_is_said_before_anything_is_loaded(stills, tmp_path):
    state = load_file(stills / "lora.safetensors")
    wide = {key: tensor.repeat(1, 2) if "lora_A" in key else tensor.repeat(2, 1) for key, tensor in state.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(MismatchError, match=r"(?s)the target is Z-Image.*wide\.safetensors"):
        run(stills, tmp_path / "out", transferred=[tmp_path / "wide.safetensors"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prompts": []}, UsageError, "no prompt"),
        ({"prompts": ["a", "a"]}, UsageError, "twice"),
        ({"target_sampling": SamplingSettings()}, UsageError, "not known how"),
        ({"target": None}, UsageError, "target is not given"),
        ({"target": "zoo:source"}, UsageError, "bundled"),
        ({"target": "nowhere/at/all"}, FileError, "no such target"),
        ({"source": "source/transformer"}, UsageError, "not a complete pipeline"),
        ({"transferred": ["nowhere.safetensors"]}, FileError, "no such LoRA"),
        ({"transferred": "source/transformer"}, MismatchError, "a LoRA is needed"),
        ({"target_lora": "source/transformer"}, MismatchError, "a LoRA is needed"),
        ({"device": "cuda:63"}, UsageError, "cannot use this device"),
        ({"device": "cuda:0,cuda:1"}, UsageError, "one device"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(stills, tmp_path, changes, error, words):
    model = stills / "source" / "transformer"
    changes = {name: model if given == "source/transformer" else given for name, given in changes.items()}
    with pytest.raises(error, match=words):
        run(stills, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_models_of_two_families_and_such_as_nothing_runs_are_refused(stills, tmp_path):
    from loraport.models.families import families

    tiny_videos.ltx_video(tmp_path / "other")
    with pytest.raises(MismatchError, match=r"(?s)different families.*Z-Image, LTX-Video"):
        run(stills, tmp_path / "out", target=tmp_path / "other")
    for name, words in (("hunyuan_video_15", "loads no LoRAs"), ("minimax_h3", "has no pipeline")):
        with pytest.raises(UnsupportedError, match=f"(?s){words}.*Wan.*Z-Image"):
            _check_runs(families()[name])


def test_weights_that_are_missing_are_said_before_any_clip(stills, tmp_path):
    settings = loraport.CompareSettings(**SIZE, csd=tmp_path / "none.pth")
    with pytest.raises(FileError, match=r"none\.pth"):
        run(stills, tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


def test_the_same_file_is_not_compared_twice(stills, tmp_path):
    with pytest.raises(UsageError, match="twice"):
        run(stills, tmp_path / "out", transferred=[stills / "lora.safetensors"])


@pytest.mark.parametrize("said", ["Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers"])
def test_a_hub_id_with_a_dot_is_downloaded(stills, monkeypatch, said):
    asked = []

    def download(name):
        asked.append(name)
        return str(stills / "source")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    assert find_model(said, "source").path == stills / "source"
    assert asked == ["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SamplingSettings(times=(1000, 757, 522), sampler="renoise"), [1000, 757, 522]),
        (SamplingSettings(steps=4, shift=5), [1000, 937.5, 833.33, 625]),
        (SamplingSettings(steps=4, sampler="euler"), [1000, 900, 750, 500]),  # the shift of its own scheduler, 3
    ],
)
def test_times_arrive_at_the_scheduler(settings, expected):
    class Pipeline:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    pipeline = Pipeline()
    set_sampling(pipeline, settings)
    grid = np.linspace(1.0, 1 / 4, 4)  # as most pipelines ask
    pipeline.scheduler.set_timesteps(sigmas=grid, device="cpu")
    assert pipeline.scheduler.timesteps.tolist() == pytest.approx(expected, abs=0.01)
    assert bool(pipeline.scheduler.config.stochastic_sampling) == (settings.sampler == "renoise")


def test_a_shift_that_is_asked_for_is_all_that_shifts():
    """Qwen-Image's scheduler shifts by resolution and stretches to a last time, which its distilled models do not."""

    class Pipeline:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.02, use_dynamic_shifting=True)

    pipeline = Pipeline()
    set_sampling(pipeline, SamplingSettings(steps=4, shift=3))
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 4, 4), device="cpu")
    assert pipeline.scheduler.timesteps.tolist() == pytest.approx([1000, 900, 750, 500], abs=0.01)


def test_pixels_that_are_no_numbers_are_refused():
    class Made:
        images = np.full((1, 2, 2, 3), np.nan)

    class Pipeline:
        def __call__(self, prompt, generator, output_type):
            return Made

    from loraport.errors import NumericalError
    from loraport.models.families import families

    with pytest.raises(NumericalError, match="not finite"):
        render(Pipeline(), families()["z_image"], SamplingSettings(), Shot(Prompt("a"), 0))


def test_what_can_be_seen_through_stands_before_white():
    """Qwen-Image-2.1 makes pictures with a fourth channel."""

    class Made:
        images = np.zeros((1, 2, 2, 4))

    Made.images[..., 0] = 1
    Made.images[0, 0, :, 3] = [1, 0.5]

    class Pipeline:
        def __call__(self, prompt, generator, output_type):
            return Made

    from loraport.models.families import families

    made = render(Pipeline(), families()["qwen_image_21"], SamplingSettings(), Shot(Prompt("a"), 0))
    assert made[0].tolist() == [[[255, 0, 0], [255, 128, 128]], [[255, 255, 255]] * 2]


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        (IndexError("index 33 is out of bounds"), MismatchError, "index 33"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), FileError, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), FileError, "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), FileError, "out of memory"),
    ],
)
def test_what_a_pipeline_says_is_no_bug_of_ours(raised, error, words):
    class Pipeline:
        def __call__(self, prompt, generator, output_type):
            raise raised

    from loraport.models.families import families

    with pytest.raises(error, match=words):
        render(Pipeline(), families()["z_image"], SamplingSettings(), Shot(Prompt("a"), 0))


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("  one \n\ntwo\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == (Prompt("one"), Prompt("two"))
    with pytest.raises(FileError):
        read_prompts(tmp_path / "none.txt")


def test_an_odd_file_is_no_clip(tmp_path):
    folder = ClipFolder(tmp_path)
    np.savez(folder.path({"a": 1}), frames=np.zeros((2, 3, 3)))
    assert folder.read({"a": 1}) is None
    folder.path({"a": 1}).write_bytes(b"")
    assert folder.read({"a": 1}) is None
    folder.write({"a": 1}, np.zeros((1, 2, 2, 3), np.uint8))
    assert folder.read({"a": 1}).shape == (1, 2, 2, 3)
    assert folder.read({"a": 2}) is None
