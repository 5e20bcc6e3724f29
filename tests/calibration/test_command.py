"""`transfer --calibrate`, `--plot`, and what ends a run early: each on the real thing."""

import dataclasses
import io
import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import loraport
from loraport.adapters.parse import open_adapter
from loraport.calibration import Settings
from loraport.calibration.diagnosis import Diagnosis, Shown, Table
from loraport.calibration.plot import AFTER, BEFORE, diagnosis_png
from loraport.cli.main import app
from loraport.errors import FileError
from loraport.zoo import world

from . import tinywan
from .conftest import LATENTS, ToyDenoiser, toy


def _run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def bundle(tmp_path):
    """Two models that say themselves how they are run, as the bundled ones do, but a fraction of their size."""
    made = []
    for name, drift, guidance in (("base", 0.0, 3.0), ("fast", 0.2, 1.0)):
        folder = tmp_path / name
        tinywan.transformer(
            drift=drift,
            changes={
                "patch_size": (1, 8, 8), "in_channels": world.CHANNELS, "out_channels": world.CHANNELS,
                "text_dim": world.encode_null(1).shape[-1],
            },
        ).save_pretrained(folder / "transformer")  # fmt: skip
        sampling = {"steps": 2, "guidance": guidance, "shift": 2.0, "attention": "full"}
        card = {"summary": "tiny", "parent": None if name == "base" else "base", "sampling": sampling}
        (folder / "model.json").write_text(json.dumps(card))
        made.append(folder)
    return made


def test_transfer_with_calibrate_runs_the_calibration(bundle, tmp_path):
    first, second = tinywan.lora(tmp_path / "a.safetensors"), tinywan.lora(tmp_path / "b.safetensors", size=0.2)
    base, fast = bundle
    done = _run(
        "transfer", first, second, "--source", base, "--target", fast, "--calibrate", "-o", tmp_path / "out",
        "--dtype", "bfloat16", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["failed"] == 0
    for document, name in zip(report["reports"], ("a", "b"), strict=True):
        out = tmp_path / "out" / f"{name}.safetensors"
        assert document["output"] == str(out)
        assert document["settings"] == Settings().to_json() | {"transfers": ["casa", "matched-gain"]}
        made = open_adapter(out)
        assert made.dtype == "BF16"
        assert json.loads(made.metadata["loraport.recipe"])["method"] == "calibrate"
        assert document["chosen"]["distance"] <= document["best_plain"]["distance"]


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "casa"],
        ["--rank", "auto"],
        ["--amount", "1"],
        ["--set", "casa.q_dom=0.5"],
        ["--layers", "ffn"],
        ["--target-lora", "x.safetensors"],
        ["--drop", "x"],
        ["--workers", "2"],
        ["--cache", "off"],
        ["--force"],
    ],
)
def test_options_that_a_calibration_would_ignore_are_refused(words, tmp_path):
    done = _run(
        "transfer", "outline", "-s", "zoo:source", "-t", "zoo:step", "--calibrate", "-o", tmp_path / "x", *words
    )
    assert done.exit_code == 2, done.output
    assert f"found: {words[0]}" in done.stderr
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_say_how_they_run_are_sent_to_the_other_command(tmp_path):
    folder = tmp_path / "plain"
    tinywan.transformer().save_pretrained(folder / "transformer")
    for words, code, says in (
        (["-s", folder, "-t", "zoo:step"], 2, "use loraport calibrate"),
        (["-s", "zoo:source", "-t", folder], 2, "the target does not say how it is run"),
        (["-s", "zoo:source", "-t", tmp_path / "none"], 5, "no such target"),
        (["-s", "zoo:source"], 2, "--target"),
        (["-t", "zoo:step"], 2, "--source"),
    ):
        done = _run("transfer", "outline", *words, "--calibrate", "-o", tmp_path / "out.safetensors")
        assert done.exit_code == code, done.output
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_target_times_and_steps_contradict_each_other(tmp_path):
    words = ["calibrate", "outline", "-s", "source", "-t", "step", "-o", tmp_path / "x", "--target-times", "1000,500"]
    for more in (["--target-steps", 2], ["--target-shift", 3]):
        done = _run(*words, *more)
        assert done.exit_code == 2, done.output
        assert "contradict" in done.stderr


def _table(names, before, after):
    rows = zip(names, before, after, strict=True)
    pairs = [(Shown(name, old, old, 0.5), Shown(name, new, new, 0.9)) for name, old, new in rows]
    return Table(tuple(old for old, _ in pairs), tuple(new for _, new in pairs))


def _diagnosis(groups=()):
    steps = _table(["t = 1", "t = 0.757", "t = 0.522"], [0.4, 0.5, -0.1], [0.9, 1.1, 0.6])
    one = _table(["all steps"], [0.4], [0.9])
    return Diagnosis(2.0, one, steps, _table(groups, [0.3] * len(groups), [1.4] * len(groups)), one)


def _pixels(png, colour):
    """Height, width, and places of a colour, in pixels."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(picture.height, picture.width, 3)
    wanted = torch.tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return picture.size, (data == wanted).all(-1).nonzero()


def test_the_plot_shows_both_before_and_after():
    plain, grouped = diagnosis_png(_diagnosis()), diagnosis_png(_diagnosis(("self v", "cross v", "ffn in")))
    assert diagnosis_png(_diagnosis()) == plain
    size, before = _pixels(plain, BEFORE)
    _, after = _pixels(plain, AFTER)
    left = [places[places[:, 1] < size[0] // 2] for places in (before, after)]
    assert min(len(places) for places in left) > 100
    assert left[0][:, 0].float().mean() > left[1][:, 0].float().mean()  # a smaller share lies lower
    taller, many = _pixels(grouped, AFTER)
    assert taller[1] > size[1]
    assert len(many) > len(after)


def test_a_report_saves_its_plot(lora, source, target, prompts, tmp_path):
    settings = Settings(transfers=(), probes=1, heldout=2, group_probes=1, guidances=(1.0,), penalties=(0.3,))
    report = loraport.calibrate(lora, source=source, target=target, prompts=prompts, settings=settings)
    report.save_plot(tmp_path / "diagnosis.png")
    assert (tmp_path / "diagnosis.png").read_bytes() == diagnosis_png(report.diagnosis)
    with pytest.raises(FileError):
        report.save_plot(tmp_path / "diagnosis.png" / "below.png")


def test_a_plot_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    there, out = tmp_path / "there.png", tmp_path / "out.safetensors"
    there.write_bytes(b"old")
    for plot, code, says in (
        (tmp_path / "x.svg", 2, "x.png"),
        (there, 5, "--overwrite"),
        (tmp_path / "out.safetensors", 2, "PNG"),
    ):
        done = _run("calibrate", "outline", "-s", "source", "-t", "step", "-o", out, "--plot", plot)
        assert done.exit_code == code, done.output
        assert says in done.stderr
    assert there.read_bytes() == b"old"
    assert not out.exists()


class Hungry(ToyDenoiser):
    """Asks for more memory than any machine has."""

    def velocity(self, latents, time, condition):
        torch.empty(2**60, dtype=torch.uint8)
        return super().velocity(latents, time, condition)


@pytest.mark.parametrize("role", ["source", "target"])
def test_memory_that_runs_out_is_said_with_what_to_do(role, lora, source, target, prompts, tmp_path):
    hungry = dataclasses.replace(toy("hungry", steps=2), open=lambda: Hungry(toy("x").open().network))
    models = {"source": source, "target": target} | {role: hungry}
    assert hungry.latents == LATENTS
    settings = Settings(transfers=(), probes=1, heldout=2)
    with pytest.raises(FileError, match="out of memory") as caught:
        loraport.calibrate(
            lora, **models, prompts=prompts, settings=settings, output=tmp_path / "out.safetensors",
            keep=tmp_path / "keep",
        )  # fmt: skip
    assert "--offload" in caught.value.fix
    assert not (tmp_path / "out.safetensors").exists()
    assert bool(list(tmp_path.glob("keep/*-states.safetensors"))) == (role == "source")
