"""What one program would make of one file: every key in one place, true to its row, with a way out that works."""

import shlex

import pytest
import torch
from typer.testing import CliRunner

import loraport
import makers
from loraport.adapters.arrival import FULL, PART, REFUSED, UNKNOWN, UNREAD, Arrival, rows_of
from loraport.adapters.consumers import consumers
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.cli.main import app
from loraport.errors import UsageError
from makers import KOHYA, PEFT, LoraFile, flat, same, spell

V = "diffusion_model."
BIAS = {f"{V}{name}.diff_b": torch.ones(b.shape[0]) for name, (b, _) in makers.factors().items()}
NORM = {f"{V}blocks.0.norm3.diff": torch.ones(24), f"{V}blocks.0.norm3.diff_b": torch.ones(24)}
MODULATION = {f"{V}blocks.1.modulation.diff": torch.ones(1, 6, 24)}
ALL_PARTS = makers.universal() | BIAS | NORM | MODULATION


def _of(tensors, program, folder, to=None) -> Arrival:
    path = LoraFile(tensors).write(folder)
    if to is not None:
        path = convert(path, folder / f"{to}.safetensors", to=to, overwrite=True).output
    return Arrival(open_adapter(path), rows_of(program)[0])


@pytest.mark.parametrize("to", ["universal", "diffusers", "kohya", "original", "fastvideo"])
def test_every_key_is_matched_or_lost_for_every_program(to, tmp_path):
    path = convert(LoraFile(makers.universal()).write(tmp_path), tmp_path / "x.safetensors", to=to).output
    lora = open_adapter(path)
    for consumer in consumers():
        arrival = Arrival(lora, consumer)
        lost = [key for loss in arrival.losses for key in loss.keys]
        if arrival.reading is None:
            assert (arrival.verdict, arrival.arrives, lost) == (UNKNOWN, None, [])
        elif arrival.verdict != REFUSED:
            assert sorted([*arrival.matched, *lost]) == sorted(lora.keys), consumer.name


@pytest.mark.parametrize(
    ("program", "tensors", "to", "verdict", "matched", "lost"),
    [
        ("ComfyUI", makers.universal(), None, FULL, 40, {}),
        ("ComfyUI", ALL_PARTS, None, PART, 62, {"modulation": 1}),
        ("diffusers", ALL_PARTS, None, PART, 60, {"norm": 2, "modulation": 1}),
        ("Wan2GP", ALL_PARTS, None, PART, 61, {"norm": 1, "modulation": 1}),  # the norm's bias arrives
        ("FastVideo", ALL_PARTS, None, PART, 40, {"bias": 20, "norm": 2, "modulation": 1}),
        ("VideoX-Fun", ALL_PARTS, None, REFUSED, 0, {"bias": 20, "norm": 2, "modulation": 1}),
        ("musubi-tuner", makers.universal(), None, UNREAD, 0, {"all": 40}),
        ("WanVideoWrapper", makers.universal(), "diffusers", PART, 16, {"all": 24}),  # cross-attention of two blocks
    ],
)
def test_what_the_rows_say_counted(program, tensors, to, verdict, matched, lost, tmp_path):
    arrival = _of(tensors, program, tmp_path, to)
    assert (arrival.verdict, len(arrival.matched)) == (verdict, matched)
    assert {loss.part: len(loss.keys) for loss in arrival.losses} == lost
    assert arrival.arrives is (verdict == FULL)


def test_the_scale_is_that_of_the_file_as_it_is_applied(tmp_path):
    plain = spell(makers.factors(), "lora_unet_", flat, *KOHYA, alpha=2.0)
    arrival = _of(plain, "ComfyUI", tmp_path)
    assert arrival.scales == (0.5,)
    assert _of(makers.universal(), "ComfyUI", tmp_path).scales == (1.0,)
    assert _of(plain, "FastVideo", tmp_path).scales == ()  # nothing is applied


def test_of_a_spelling_at_which_nobody_looked_nothing_is_claimed(tmp_path):
    arrival = _of(spell(makers.factors(), "pipe.dit.", same, *PEFT), "ComfyUI", tmp_path)
    assert (arrival.verdict, arrival.arrives, arrival.matched) == (UNKNOWN, None, ())
    assert "--to universal" in arrival.remedy


@pytest.mark.parametrize(
    ("program", "tensors", "to"),
    [
        ("musubi-tuner", makers.universal(), None),
        ("musubi-tuner", makers.universal() | MODULATION, None),
        ("VideoX-Fun", ALL_PARTS, None),
        ("ComfyUI", makers.universal(), "diffusers"),
        ("FastVideo 0.2.1 (set_lora_adapter)", makers.universal() | NORM, None),
    ],
)
def test_the_way_out_works(program, tensors, to, tmp_path):
    """The command runs as it is printed, and more arrives of what it makes."""
    before = _of(tensors, program, tmp_path, to)
    words = shlex.split(before.remedy)
    assert words[:2] == ["loraport", "convert"]
    assert CliRunner().invoke(app, words[1:], prog_name="loraport").exit_code == 0
    after = Arrival(open_adapter(words[-1]), before.consumer)
    assert len(after.matched) > len(before.matched)
    assert after.verdict in (FULL, PART)


def test_the_function_says_it_as_a_check(tmp_path):
    path = LoraFile(ALL_PARTS).write(tmp_path)
    checks = {check.name: check for check in loraport.verify(path, load=False, consumer="comfyui").checks}
    assert (checks["arrives in ComfyUI"].passed, checks["arrives in ComfyUI"].found) == (
        False,
        "in part: 62 of 63 keys",
    )
    assert "arrives in ComfyUI" not in {check.name for check in loraport.verify(path, load=False).checks}


def test_programs_are_found_whatever_the_case_and_the_nearest_is_named():
    assert [row.name for row in rows_of("lightx2v")] == ["LightX2V"]
    assert [row.program for row in rows_of("FASTVIDEO 0.2.1")] == ["FastVideo 0.2.1"] * 2
    with pytest.raises(UsageError, match="did you mean 'comfyui'"):
        rows_of("confyui")
