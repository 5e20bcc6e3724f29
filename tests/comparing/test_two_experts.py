"""`loraport compare` on Wan2.2's two experts: which file goes onto which transformer, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import tiny_pipelines
from loraport.comparing.clips import model_digest
from loraport.comparing.models import find_model
from loraport.comparing.opening import DeviceSetup, opened
from loraport.comparing.pairs import find_files
from loraport.comparing.prompts import Prompt
from loraport.comparing.rendering import Shot, render, set_sampling, with_loras
from loraport.comparing.variants import Placed, list_variants
from loraport.engine.events import Remarked, Step
from loraport.errors import FileError, LoraportError, MismatchError, UsageError
from loraport.sampling.schedule import SamplingSettings

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
CPU = DeviceSetup(torch.device("cpu"), torch.float32)
TWO = SamplingSettings(steps=2, guidance=1)  # one of each expert
SHOT = Shot(Prompt("a cat sits"), 0, height=16, width=16, frames=5)
CALL = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Source and target with both experts, a LoRA and what was made of it in pairs, and a file with both."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_pipelines.wan(folder / "source", second=10, boundary=0.8)
    tiny_pipelines.wan(folder / "target", second=10, boundary=0.8, drift=0.3)
    sizes = {"style_high_noise": 0.5, "style_low_noise": 0.7, "made_high_noise": 0.3, "made_low_noise": 0.4}
    for name, size in sizes.items():
        tiny_pipelines.wan_lora(folder / f"{name}.safetensors", size=size)
    both = {
        key.replace("diffusion_model.", f"diffusion_model.transformer_{number}."): tensor
        for number, expert in ((1, "high"), (2, "low"))
        for key, tensor in load_file(folder / f"style_{expert}_noise.safetensors").items()
    }
    save_file(both, folder / "both.safetensors")
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A pipeline with one transformer."""
    return tiny_pipelines.wan(tmp_path_factory.mktemp("single") / "model")


def run(folder, output, lora="style_high_noise", **changes):
    given = {
        "source": folder / "source", "target": folder / "target", "output": output, "prompts": ["a cat sits"],
        "settings": loraport.CompareSettings(frames=5, height=16, width=16), "source_sampling": TWO,
        "target_sampling": TWO, "device": "cpu",
    }  # fmt: skip
    return loraport.compare(folder / f"{lora}.safetensors", **(given | changes))


def placed(folder, expert, strength=1.0, name="style"):
    return Placed(folder / f"{name}_{expert}_noise.safetensors", strength, expert)


def by_diffusers(folder, *cases):
    """The frames by a pipeline, its loader, and a call, with the LoRA of each expert at a strength, case by case."""
    with torch.random.fork_rng(devices=[]):
        pipe = diffusers.WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        for strengths in cases:
            for expert, strength in strengths.items():
                second = {"load_into_transformer_2": True} if expert == "low" else {}
                name = f"style_{expert}_noise.safetensors"
                pipe.load_lora_weights(folder.parent, weight_name=name, adapter_name=expert, **second)
                (pipe.transformer_2 if second else pipe.transformer).set_adapters(expert, strength)
            made = pipe(SHOT.prompt.text, **CALL, output_type="np", generator=torch.Generator().manual_seed(0))
            yield np.rint(255 * made.frames[0].clip(0, 1)).astype(np.uint8)
            pipe.unload_lora_weights()


def test_each_file_changes_its_own_expert_as_in_diffusers(pair):
    """The same pixels as diffusers alone makes; and afterwards the pipeline is as it was."""
    model = find_model(pair / "target", "target")
    assert model.two_experts
    with opened(model, CPU) as pipeline:
        set_sampling(pipeline, TWO)

        def clip(*loras):
            with with_loras(pipeline, model.family, loras):
                return render(pipeline, model.family, TWO, SHOT)

        plain = clip()
        high, low = clip(placed(pair, "high")), clip(placed(pair, "low"))
        both = clip(placed(pair, "high", 0.75), placed(pair, "low", 0.5))
        inside = clip(*(Placed(pair / "both.safetensors", s, e) for e, s in (("high", 0.75), ("low", 0.5))))
        assert np.array_equal(clip(), plain)
    assert len({frames.tobytes() for frames in (plain, high, low, both)}) == 4
    assert np.array_equal(inside, both)
    expected = list(by_diffusers(pair / "target", {"high": 0.75, "low": 0.5}, {"low": 1.0}))
    assert np.array_equal(both, expected[0])
    assert np.array_equal(low, expected[1])


@pytest.mark.slow
def test_what_is_loaded_is_the_merged_pair(pair, tmp_path):
    """Another way: the updates are added to both transformers by hand."""
    folder = tiny_pipelines.wan(tmp_path / "merged", second=10, boundary=0.8, drift=0.3)
    for expert, part in (("high", "transformer"), ("low", "transformer_2")):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        lora = pair / f"style_{expert}_noise.safetensors"
        loraport.merge(lora, pair / "target" / file, folder / file, overwrite=True)
    frames = []
    for where, loras in ((pair / "target", [placed(pair, "high"), placed(pair, "low")]), (folder, [])):
        model = find_model(where, "target")
        with opened(model, CPU) as pipeline, with_loras(pipeline, model.family, loras):
            set_sampling(pipeline, TWO)
            frames.append(render(pipeline, model.family, TWO, SHOT))
    assert np.abs(frames[0].astype(int) - frames[1]).max() <= 1


@pytest.mark.slow
def test_pairs_from_end_to_end(pair, tmp_path):
    told = []
    report = run(
        pair, tmp_path / "out", transferred=pair / "made_high_noise.safetensors",
        target_lora=pair / "made_high_noise.safetensors", on_event=told.append,
    )  # fmt: skip
    said = [event.message for event in told if isinstance(event, Remarked)]
    assert [words.split(",")[0] for words in said] == ["style_low_noise.safetensors", "made_low_noise.safetensors"]
    assert [one.label for one in report.variants][-1] == "target + made"
    assert (report.made, len(report.files)) == (4, 4)
    written = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))
    assert written["variants"][0]["experts"] == {
        expert: str(pair / f"style_{expert}_noise.safetensors") for expert in ("high", "low")
    }
    lows = {"lora_low": pair / "style_low_noise.safetensors", "transferred_low": pair / "made_low_noise.safetensors"}
    made = {"transferred": pair / "made_high_noise.safetensors", "target_lora": pair / "made_high_noise.safetensors"}
    steps = []

    def stop(event):
        if isinstance(event, Step):
            steps.append((event.message, event.total))
            raise KeyboardInterrupt

    other = {**lows, "lora_low": pair / "made_low_noise.safetensors", "transferred": (), "transferred_low": ()}
    for changes in ({**lows, "target_lora_low": pair / "made_low_noise.safetensors"}, other, {"lora_low": None}):
        with pytest.raises(KeyboardInterrupt):
            run(pair, tmp_path / "out", **{**made, **changes}, on_event=stop)
    # Said or taken by name, it is the same; another LoRA for the second expert makes two clips anew.
    assert steps == [("measuring", 4), ("loading the source", 2), ("measuring", 4)]


@pytest.mark.slow
def test_both_transformers_alone_take_the_rest_of_the_source(pair, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for part in ("transformer", "transformer_2"):
        (alone / part).symlink_to(pair / "target" / part, target_is_directory=True)
    frames = []
    for model in (find_model(pair / "target", "target"), find_model(alone, "target", find_model(pair / "source", "s"))):
        with opened(model, CPU) as pipeline:
            frames.append(render(pipeline, model.family, TWO, SHOT))
    assert np.array_equal(*frames)


def test_what_nobody_said_is_taken_by_name_and_said(pair, tmp_path):
    for name in ("plain", "x_low_noise", "x-HIGH-noise"):
        tiny_pipelines.wan_lora(tmp_path / f"{name}.safetensors")
    high, low = (pair / f"style_{expert}_noise.safetensors" for expert in ("high", "low"))
    plain, late, early = (tmp_path / f"{name}.safetensors" for name in ("plain", "x_low_noise", "x-HIGH-noise"))
    cases = {
        (high, None): (high, low, "is used for the low-noise expert"),
        (low, None): (high, low, "is used for the high-noise expert"),
        (high, high): (high, high, ""),
        (plain, None): (plain, None, "only into the high-noise expert.*--lora-low FILE"),
        (early, None): (early, None, "only into the high-noise expert"),
        (late, None): (None, late, "for the low-noise expert and is loaded only into that one"),
        (pair / "both.safetensors", None): (pair / "both.safetensors",) * 2 + ("holds LoRAs for both",),
    }
    for (one, other), (first, second, words) in cases.items():
        (found,) = find_files(one, other, [], [], two_experts=True)
        assert (found.high, found.low, bool(found.note)) == (first, second, bool(words))
        assert re.search(words, found.note)
    (_, made) = find_files(high, None, [plain], [late], two_experts=True)
    assert (made.high, made.low, made.note) == (plain, late, "")
    (_, *several) = find_files(plain, None, [high, low, late], [], two_experts=True)
    assert [one.by_expert for one in several] == [{"high": high, "low": low}, {"low": late}]  # each pair once
    with pytest.raises(UsageError, match="swap them"):
        find_files(low, high, [], [], two_experts=True)


def test_pairs_have_names_of_their_own(pair):
    high, low = (pair / f"made_{expert}_noise.safetensors" for expert in ("high", "low"))
    lora, *made = find_files(pair / "both.safetensors", None, [high], [low], two_experts=True)
    assert [one.label for one in list_variants(lora, made, (1.0,))][-1] == "target + made"
    with pytest.raises(UsageError, match="twice"):
        list_variants(lora, made * 2, (1.0,))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"transferred_low": ["made_low_noise"]}, UsageError, "different numbers of transferred files"),
        ({"lora_low": "nowhere"}, FileError, "no such LoRA"),
        ({"target": "target/transformer"}, UsageError, "two transformers, but the target has one.*folder with both"),
        ({"target": "target/transformer/diffusion_pytorch_model.safetensors"}, UsageError, "folder with both"),
        ({"target_lora": ("style_high_noise", "apart_low_noise")}, UsageError, "named after the low-noise expert"),
    ],
)
def test_mistakes_with_pairs_are_said_before_anything_is_loaded(pair, tmp_path, changes, error, words):
    tiny_pipelines.wan_lora(tmp_path / "apart_low_noise.safetensors")
    given = {name: _paths(value, pair, tmp_path) for name, value in changes.items()}
    with pytest.raises(error, match=f"(?s){words}"):
        run(pair, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def _paths(value, *folders):
    if not isinstance(value, str):
        return [_paths(each, *folders) for each in value]
    names = [folder / f"{value}{end}" for folder in folders for end in ("", ".safetensors")]
    return next((name for name in names if name.exists()), names[1])


def test_one_and_two_transformers_do_not_mix(pair, single, tmp_path):
    low = pair / "style_low_noise.safetensors"
    one = {"source": single, "target": single}
    for changes in ({"lora_low": low}, {"transferred_low": [low]}, {"target_lora_low": low}):
        with pytest.raises(UsageError, match=f"(?s)for a low-noise one.*--{next(iter(changes)).replace('_', '-')}"):
            run(pair, tmp_path / "out", **one, **changes)
    with pytest.raises(MismatchError, match="target has two transformers, but the source has one"):
        run(pair, tmp_path / "out", source=single)
    with pytest.raises(UsageError, match="source has two transformers, but the target has one"):
        run(pair, tmp_path / "out", target=single)
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_never_changes_over_is_refused(pair, tmp_path):
    for part in (pair / "source").iterdir():
        if part.is_dir():
            (tmp_path / part.name).symlink_to(part, target_is_directory=True)
    index = json.loads((pair / "source" / "model_index.json").read_text("utf-8"))
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": None}), "utf-8")
    with pytest.raises(UsageError, match="no boundary_ratio"):
        find_model(tmp_path, "source")


def test_another_second_transformer_is_another_model(pair, tmp_path):
    """Also where the parts are links, as of pipelines that share most of them."""
    for part in ("transformer", "transformer_2"):
        (tmp_path / part).symlink_to(pair / "source" / part, target_is_directory=True)
    before = model_digest(tmp_path)
    (tmp_path / "transformer_2").unlink()
    (tmp_path / "transformer_2").symlink_to(pair / "target" / "transformer_2", target_is_directory=True)
    assert model_digest(tmp_path) != before


def test_half_of_a_file_with_both_is_not_taken_for_one_transformer(pair, single):
    model = find_model(single, "source")
    with (
        opened(model, CPU) as pipeline,
        pytest.raises(LoraportError, match="expert"),
        with_loras(pipeline, model.family, [Placed(pair / "both.safetensors")]),
    ):
        pass


def test_a_lora_of_another_size_is_said_for_its_expert(pair, tmp_path):
    state = load_file(pair / "style_low_noise.safetensors")
    wide = {key: tensor.repeat(1, 2) if "lora_A" in key else tensor for key, tensor in state.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    model = find_model(pair / "source", "source")
    with opened(model, CPU) as pipeline:
        loras = [placed(pair, "high"), Placed(tmp_path / "wide.safetensors", 1.0, "low")]
        with pytest.raises(LoraportError, match=r"wide\.safetensors"), with_loras(pipeline, model.family, loras):
            pass
        assert not any("lora" in key for part in ("transformer", "transformer_2") for key in _keys(pipeline, part))


def _keys(pipeline, part):
    return getattr(pipeline, part).state_dict()


def test_the_command_line_takes_pairs(pair, tmp_path, capsys):
    from loraport.cli.main import app

    (tmp_path / "prompts.txt").write_text("a cat sits\n", encoding="utf-8")
    words = [
        "compare", "--source", pair / "source", "--target", pair / "target", "--target-steps", "2",
        "--lora", pair / "style_high_noise.safetensors", "--lora-low", pair / "style_low_noise.safetensors",
        "--target-lora", f"{pair / 'made_high_noise.safetensors'}:0.5",
        "--target-lora-low", f"{pair / 'made_low_noise.safetensors'}:0.5",
        "--transferred", pair / "both.safetensors", "--transferred-low", tmp_path / "none.safetensors",
        "--prompts", tmp_path / "prompts.txt", "--device", "cpu", "-o", tmp_path / "out",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        app([str(word) for word in words])
    assert ended.value.code != 0
    told = capsys.readouterr().err
    assert "there is no such LoRA file" in told
    assert "none.safetensors" in told.replace("\n", "")
