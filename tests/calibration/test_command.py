"""`loraport calibrate` as people see it, its picture, and what it refuses before a model runs."""

import io

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import toys
from loraport.calibration.plot import AFTER, BEFORE, calibration_png
from loraport.cli.main import app
from loraport.errors import FileError

from .conftest import SMALL


def _calibrate(*words):
    return CliRunner().invoke(app, ["calibrate", *map(str, words)])


def test_what_is_shown_to_people(tmp_path):
    words = ["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", tmp_path / "out.safetensors"]
    done = _calibrate(
        *words, "--strengths", "1,1.5", "--methods", "none", "--samples", 2, "--diagnosis", 1, "--source-steps", 2,
        "--cache", "off", "-v",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for text in ("In finished clips the LoRA shows", "direct x1.5", "took", "passes", "use it at strength 1", "t = 1"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step"], 2, "output"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", "x", "--latents", "5"], 2, "latents"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", "x", "--latents", "5x32"], 2, "found: 5x32"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", "x", "--source-times", "9,10"], 2, "found: 9, 10"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", "x", "--target-times", "a"], 2, "target-times"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", "x", "--strengths", "0"], 2, "strengths"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", "x", "--methods", "cassa"], 2, "casa"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", "x", "--to", "nonsense"], 2, "nonsense"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", "x", "--dtype", "float99"], 2, "dtype"),
        (["zoo:outline", "-s", "zoo:source", "-t", "zoo:stepp", "-o", "x"], 2, "stepp"),
        (["nothing.safetensors", "-s", "zoo:source", "-t", "zoo:step", "-o", "x"], 5, "nothing.safetensors"),
        (["zoo:outline", "-s", "zoo:source", "-t", "none", "-o", "x"], 5, "no such target"),
    ],
)
def test_the_command_refuses_in_one_message(words, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = _calibrate(*words)
    assert done.exit_code == code, done.output
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [["--target-steps", 2], ["--target-shift", 3]])
def test_target_times_and_steps_contradict_each_other(tmp_path, more):
    words = ["zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", tmp_path / "x", "--target-times", "1000,500"]
    done = _calibrate(*words, *more)
    assert done.exit_code == 2, done.output
    assert "contradict" in done.stderr


def test_a_plot_or_page_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    there, out = tmp_path / "there.png", tmp_path / "out.safetensors"
    there.write_bytes(b"old")
    refused = [("--plot", tmp_path / "x.svg", 2, "--plot FILE.png"), ("--plot", there, 5, "--overwrite")]
    refused += [("--report", there, 5, "--overwrite"), ("--report", out, 5, "replace the output")]
    for flag, file, code, says in refused:
        done = _calibrate("zoo:outline", "-s", "zoo:source", "-t", "zoo:step", "-o", out, flag, file)
        assert done.exit_code == code, done.output
        assert says in done.stderr
    assert there.read_bytes() == b"old"
    assert not out.exists()


def _pixels(png, colour):
    """Size, and places of a colour, in pixels."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(picture.height, picture.width, 3)
    wanted = torch.tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return picture.size, (data == wanted).all(-1).nonzero()


def test_a_report_saves_its_plot(run, made, tmp_path):
    target = toys.toy("toy target", made.target.checkpoint, damping=0.35)
    report = run(output=None, target=target, settings=SMALL.model_copy(update={"samples": 16}))
    report.save_plot(tmp_path / "choice.png")
    png = (tmp_path / "choice.png").read_bytes()
    assert png == calibration_png(report.choice, report.diagnosis)  # the same numbers, the same bytes
    (width, _), before = _pixels(png, BEFORE)
    _, after = _pixels(png, AFTER)
    assert len(before) > 100
    assert len(after) > 100
    assert before[:, 1].min() < width / 3  # the gaps by strength on the left
    assert before[:, 1].max() > width / 2  # the time steps to the right
    with pytest.raises(FileError):
        report.save_plot(tmp_path / "choice.png" / "below.png")
