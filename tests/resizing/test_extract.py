"""The difference of two checkpoints as a LoRA: what it keeps is what a dense float64 decomposition says."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hunyuan
import loraport
import networks
import pico
from adapter_parts import gaussian
from loraport.adapters.parse import open_adapter
from loraport.engine.events import LayerDone
from loraport.engine.options import RunOptions
from loraport.errors import FileError, MismatchError, UnsupportedError, UsageError

SOURCE = pico.weights(1)
CHANGED = ("blocks.0.self_attn.q.bias", "blocks.1.norm3.weight", "blocks.0.modulation", "patch_embedding.weight")
UNCHANGED = "blocks.1.ffn.0"
OFF = RunOptions(cache="off", executor="serial")


def _target() -> dict[str, Tensor]:
    """Weights of which each moved in its own way, with a spectrum that falls; one stayed."""
    made = dict(SOURCE)
    for number, (name, (m, n)) in enumerate(pico.LAYERS.items()):
        if name != UNCHANGED:
            fall = torch.logspace(0, -1.0 - number % 3, n)
            made[f"{name}.weight"] = (
                made[f"{name}.weight"] + 0.1 * (1 + number % 4) * gaussian(m, n, seed=number) * fall
            )
    for key in CHANGED:
        made[key] = made[key] + gaussian(*made[key].shape, seed=99, size=0.1)
    return made


TARGET = _target()
MOVED = {name: (TARGET[f"{name}.weight"].double() - SOURCE[f"{name}.weight"].double()) for name in pico.LAYERS}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    save_file(SOURCE, tmp_path / "source.safetensors")
    save_file(TARGET, tmp_path / "target.safetensors")
    return tmp_path / "source.safetensors", tmp_path / "target.safetensors"


def _updates(path: Path) -> dict[str, Tensor]:
    return {name: layer.load().dense().double() for name, layer in open_adapter(path).layers.items()}


def _share(rank: dict[str, int]) -> float:
    held = whole = 0.0
    for name, matrix in MOVED.items():
        squares = torch.linalg.svdvals(matrix).square()
        held, whole = held + float(squares[: rank.get(name, 0)].sum()), whole + float(squares.sum())
    return held / whole


def test_a_rank_and_what_a_neighbour_keeps(pair, tmp_path):
    report = loraport.extract(*pair, tmp_path / "out.safetensors", rank=4, options=OFF)
    found = _updates(tmp_path / "out.safetensors")
    assert pico.LAYERS.keys() & report.left_out == {UNCHANGED}
    assert report.energy_kept == pytest.approx(_share(dict.fromkeys(pico.LAYERS, 4)), rel=1e-6)
    clamped = whole = 0.0
    for name, matrix in MOVED.items():
        if name == UNCHANGED:
            continue
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        best = U[:, :4] * S[:4] @ Vh[:4]
        assert (found[name] - best).norm() <= 1e-5 * best.norm()
        # kohya and ComfyUI cut off the largest hundredth of the entries of both factors before they write them.
        up, down = U[:, :4] * S[:4], Vh[:4]
        limit = torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99)
        theirs = up.clamp(-limit, limit) @ down.clamp(-limit, limit)
        clamped += float((matrix - theirs).norm() ** 2)
        whole += float(matrix.norm() ** 2)
    assert report.energy_kept > 1 - clamped / whole


def test_merged_again_it_is_the_target(pair, tmp_path):
    loraport.extract(*pair, tmp_path / "whole.safetensors", energy=1.0, options=OFF)
    loraport.merge(tmp_path / "whole.safetensors", pair[0], tmp_path / "again.safetensors")
    for key, tensor in load_file(tmp_path / "again.safetensors").items():
        assert (tensor - TARGET[key]).norm() <= 1e-6 * TARGET[key].norm(), key
    lora = pico.lora(3)
    save_file(lora, tmp_path / "style.safetensors")
    loraport.merge(tmp_path / "style.safetensors", pair[0], tmp_path / "merged.safetensors", strength=0.7)
    report = loraport.extract(
        pair[0], tmp_path / "merged.safetensors", tmp_path / "back.safetensors", rank=pico.RANK, options=OFF
    )
    assert report.energy_kept > 1 - 1e-6  # the merge rounded to float32
    assert not report.passthrough
    for name, update in _updates(tmp_path / "back.safetensors").items():
        down, up = (lora[f"diffusion_model.{name}.lora_{x}.weight"].double() for x in "AB")
        assert (update - 0.7 * up @ down).norm() <= 1e-5 * update.norm()


def test_a_model_of_which_only_some_layers_have_a_bias(tmp_path):
    source = networks.canonical("minimax_h3")
    target = {key: tensor + gaussian(*tensor.shape, seed=5, size=0.02) for key, tensor in source.items()}
    files = [
        networks.write("minimax_h3", "diffusers", tmp_path / role, state)
        for role, state in (("source", source), ("target", target))
    ]
    loraport.extract(*files, tmp_path / "whole.safetensors", energy=1.0, options=OFF)
    assert loraport.verify(tmp_path / "whole.safetensors", model=files[1], load=False).ok
    loraport.merge(tmp_path / "whole.safetensors", files[0], tmp_path / "again.safetensors")
    wanted = load_file(files[1])
    for key, tensor in load_file(tmp_path / "again.safetensors").items():
        assert (tensor - wanted[key]).norm() <= 1e-6 * wanted[key].norm(), key
    blank = load_file(tmp_path / "whole.safetensors")
    bias = next(key for key in blank if "attn.out_proj.diff_b" in key)
    save_file(blank | {bias: blank[bias] + 1.0}, tmp_path / "no blank.safetensors")
    with pytest.raises(MismatchError, match=r"attn\.out_proj\.bias"):
        loraport.merge(tmp_path / "no blank.safetensors", files[0], tmp_path / "no.safetensors")


def test_what_is_no_layer_is_carried(pair, tmp_path):
    report = loraport.extract(*pair, tmp_path / "out.safetensors", energy=0.5, options=OFF)
    assert set(report.passthrough) == set(CHANGED)
    tensors = load_file(tmp_path / "out.safetensors")
    spelled = {"weight": "diff", "bias": "diff_b", "modulation": "modulation.diff"}
    for key in CHANGED:
        module, _, kind = key.rpartition(".")
        assert torch.equal(tensors[f"diffusion_model.{module}.{spelled[kind]}"], TARGET[key] - SOURCE[key])
    with pytest.raises(UnsupportedError, match="--drop"):
        loraport.extract(*pair, tmp_path / "no.safetensors", energy=0.5, to="diffusers", options=OFF)
    drop = "norm|modulation|patch"
    loraport.extract(*pair, tmp_path / "yes.safetensors", energy=0.5, to="diffusers", drop=drop, options=OFF)
    assert not any("diff" in key for key in load_file(tmp_path / "yes.safetensors"))


def test_a_size_is_kept_and_well_spent(pair, tmp_path):
    plain = loraport.extract(*pair, tmp_path / "plain.safetensors", rank=3, options=OFF)
    report = loraport.extract(*pair, tmp_path / "out.safetensors", max_size=plain.size, options=OFF)
    assert plain.size - 1000 < report.size <= plain.size
    assert report.energy_kept > plain.energy_kept
    assert report.energy_kept == pytest.approx(
        _share({layer.name: layer.rank_out for layer in report.layers}), rel=1e-6
    )
    small = loraport.extract(*pair, tmp_path / "small.safetensors", max_size=plain.size // 2, options=OFF)
    assert small.size <= plain.size // 2


@pytest.mark.slow  # a network of another family
def test_layers_that_one_file_fuses(tmp_path):
    source = hunyuan.model(1)
    target = {key: t + gaussian(*t.shape, seed=5, size=0.02) if "img_attn" in key else t for key, t in source.items()}
    save_file(hunyuan.repackaged_state(source), tmp_path / "source.safetensors")
    save_file(hunyuan.diffusers_state(target), tmp_path / "target.safetensors")
    files = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    loraport.extract(*files, tmp_path / "out.safetensors", energy=1.0, drop="norm", options=OFF)
    loraport.merge(tmp_path / "out.safetensors", files[0], tmp_path / "again.safetensors")
    wanted = hunyuan.repackaged_state(target)
    for key, tensor in load_file(tmp_path / "again.safetensors").items():
        if "norm" not in key:
            assert (tensor - wanted[key]).norm() <= 1e-6 * wanted[key].norm(), key


def test_coarser_numbers_are_no_change(pair, tmp_path):
    save_file({key: tensor.bfloat16() for key, tensor in SOURCE.items()}, tmp_path / "same.safetensors")
    with pytest.raises(MismatchError, match="hold the same numbers"):
        loraport.extract(pair[0], tmp_path / "same.safetensors", tmp_path / "out.safetensors", rank=4, options=OFF)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_same_command_resumes(pair, tmp_path):
    options = RunOptions(cache=str(tmp_path / "cache"), executor="serial")
    output = tmp_path / "out.safetensors"
    loraport.extract(*pair, tmp_path / "whole.safetensors", max_size=60_000, options=OFF)

    def stop(event: object) -> None:
        if isinstance(event, LayerDone) and event.finished == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loraport.extract(*pair, output, max_size=60_000, options=options, on_event=stop)
    assert not output.exists()
    events: list[object] = []
    loraport.extract(*pair, output, max_size=60_000, options=options, on_event=events.append)
    assert sum(event.layer.cached for event in events if isinstance(event, LayerDone)) == 12
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_models_that_have_nothing_to_do_with_each_other_are_remarked_on(pair, tmp_path):
    save_file(pico.weights(7), tmp_path / "other.safetensors")
    made = loraport.extract(pair[0], tmp_path / "other.safetensors", tmp_path / "out.safetensors", rank=1, options=OFF)
    assert "do not look like versions of one model" in made.warnings[0]
    made = loraport.extract(*pair, tmp_path / "related.safetensors", rank=1, options=OFF)
    assert not any("versions of one model" in warning for warning in made.warnings)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are no text")
def test_what_no_lora_holds_is_said_and_a_name_that_is_no_text_is_written_as_far_as_it_is(tmp_path):
    coarse = {key: tensor.to(torch.float8_e4m3fn) if tensor.dim() == 2 else tensor for key, tensor in TARGET.items()}
    save_file(SOURCE | {"adaptor.weight": torch.ones(2, 2)}, tmp_path / "source.safetensors")
    save_file(coarse | {"blocks.0.norm3.bias": torch.ones(33)}, tmp_path / "x.safetensors")
    target = (tmp_path / "x.safetensors").rename(tmp_path / os.fsdecode(b"gr\xf6n.safetensors"))
    output = tmp_path / "out.safetensors"
    said = "\n".join(loraport.extract(tmp_path / "source.safetensors", target, output, rank=1, options=OFF).warnings)
    for words in (
        "only in the source, and cannot be in the LoRA: adaptor.weight",
        "another shape in the target",
        "is quantised",
    ):
        assert words in said
    assert open_adapter(output).metadata["modelspec.title"].startswith("gr?n, as a LoRA")


def test_a_size_that_is_too_small_names_one_that_is_not(pair, tmp_path):
    for most in (1, 10_000):
        with pytest.raises(UsageError, match="too small to hold anything") as caught:
            loraport.extract(*pair, tmp_path / "out.safetensors", max_size=most, options=OFF)
    enough = int(caught.value.fix.removeprefix("--max-size "))
    made = loraport.extract(*pair, tmp_path / "out.safetensors", max_size=enough, options=OFF)
    assert made.layers
    assert made.size <= enough


def test_a_wrong_pair_and_what_makes_no_sense(pair, tmp_path):
    output = tmp_path / "out.safetensors"
    save_file(pico.weights(1, width=24, ffn=48), tmp_path / "narrow.safetensors")
    with pytest.raises(MismatchError, match=r"differ in size|The source is"):
        loraport.extract(pair[0], tmp_path / "narrow.safetensors", output, rank=4, options=OFF)
    with pytest.raises(UsageError, match="not a regular expression"):
        loraport.extract(*pair, output, rank=4, drop="(", options=OFF)
    with pytest.raises(FileError, match="would replace the target"):
        loraport.extract(*pair, pair[1], rank=4, options=OFF.model_copy(update={"overwrite": True}))
    with pytest.raises(MismatchError, match="hold the same numbers"):
        loraport.extract(pair[0], pair[0], output, rank=4, options=OFF)
    with pytest.raises(UsageError, match="no LoRA among the inputs"):
        loraport.extract(*pair, output, rank=4, to="same-as-input", options=OFF)
    assert not output.exists()
    loraport.extract(*pair, output, rank=1, options=OFF)
    told = json.loads(open_adapter(output).metadata["loraport.extract"])
    assert told["rule"] == "rank=1"
