"""The public functions and the commands of the same names: as many choices here as there, and they arrive."""

import inspect
import json
import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.cli.convert import convert as convert_command
from loraport.cli.transfer import transfer as transfer_command
from loraport.cli.verify import verify as verify_command
from loraport.diffusers import load_transferred_lora
from loraport.engine.options import RunOptions
from loraport.errors import UnmatchedKeysError, UsageError

TALK = {"verbose", "quiet", "as_json"}
# A file of settings; public functions of their own: `transfer_experts`, `transfer_many`.
APART = {
    "recipe",
    "page",
    "card",
    "lora_low",
    "source_low",
    "target_low",
    "target_lora_low",
    "recursive",
    "skip_existing",
}
MACHINE = set(RunOptions.model_fields)


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    return pico.write(tmp_path / "pico")


@pytest.fixture
def two_in_one(files):
    """A file with one LoRA named style on the first block and one named motion on the second."""
    owners = {"blocks.0.": "style", "blocks.1.": "motion"}
    tensors = {}
    for key, tensor in load_file(files.lora).items():
        name = next(name for block, name in owners.items() if block in key)
        tensors[re.sub(r"(lora_[AB])\.weight", rf"\1.{name}.weight", key)] = tensor
    save_file(tensors, files.folder / "two.safetensors")
    return files.folder / "two.safetensors"


def _choices(function) -> dict[str, object]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("function", "command", "other_names"),
    [
        (loraport.convert, convert_command, {}),
        (loraport.verify, verify_command, {"files": "path"}),
        (loraport.transfer, transfer_command, {"loras": "lora", "settings": "params", "preset": "method"}),
        (loraport.transfer_many, transfer_command, {"settings": "params", "preset": "method"}),
    ],
)
def test_a_function_takes_what_its_command_takes(function, command, other_names):
    theirs, ours = _choices(command), _choices(function)
    if "options" in ours:  # how to use the machine is one argument here
        theirs = {name: value for name, value in theirs.items() if name not in MACHINE}
    theirs = {name: value for name, value in theirs.items() if name not in TALK | APART}
    assert {other_names.get(name, name) for name in theirs} - set(ours) == set()


PUBLIC = [getattr(loraport, name) for name in loraport.__all__ if inspect.isfunction(getattr(loraport, name))]
RECIPE = loraport.Recipe(lora="a", source="b", target="c")
ANY_MODEL = {loraport.calibrate: {"source", "target"}, load_transferred_lora: {"pipe"}}


@pytest.mark.parametrize("function", [*PUBLIC, load_transferred_lora], ids=lambda function: function.__name__)
def test_a_value_of_a_wrong_type_is_a_usage_error_that_names_the_argument(function):
    parameters = inspect.signature(function).parameters
    needed = {name: "x" for name, each in parameters.items() if each.default is each.empty}
    needed |= {name: value for name, value in {"recipe": RECIPE, "grid": {}}.items() if name in needed}
    for name in parameters.keys() - ANY_MODEL.get(function, set()):
        with pytest.raises(UsageError) as caught:
            function(**needed | {name: object()})
        assert name in caught.value.what
        assert "Input should" not in caught.value.what  # pydantic's words


class OtherPath(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_a_value_of_a_type_that_means_the_same_is_taken(files, tmp_path):
    """A generator of paths, a path of another library, what numpy counts with."""
    loras = (path for path in files.folder.iterdir() if path == files.lora)
    folder = tmp_path / "many"
    assert not loraport.transfer_many(loras, source=files.source, target=files.target, output=folder).failed
    done = loraport.resize(files.lora, OtherPath(tmp_path / "small.safetensors"), rank=np.int64(2), scale=1)
    assert {layer.rank_out for layer in done.layers} == {2}


def test_a_word_that_is_none_of_a_few_is_refused(files, tmp_path):
    output = tmp_path / "out.safetensors"
    for job in (
        lambda: loraport.convert(files.lora, output, expert="hgih"),
        lambda: loraport.merge(files.lora, files.source, output, expert="hgih"),
        lambda: loraport.verify(files.lora, load=False, expert="hgih"),
    ):
        with pytest.raises(UsageError, match="expert"):
            job()
    assert not output.exists()


def test_convert_leaves_out_what_it_is_told_to(files, tmp_path):
    output = tmp_path / "out.safetensors"
    done = loraport.convert(files.lora, output, to="diffusers", drop=r"ffn")
    assert len(done.dropped) == 2 * 2 * pico.BLOCKS
    told = json.loads(json.dumps(done.to_json()))
    assert (told["output"], told["dropped"]) == (str(output), list(done.dropped))
    assert not any("ffn" in key for key in load_file(output))
    tensors = load_file(files.lora)
    tensors["diffusion_model.blocks.0.nonsense.lora_A.weight"] = torch.ones(pico.RANK, pico.WIDTH)
    save_file(tensors, files.lora)
    with pytest.raises(UnmatchedKeysError):
        loraport.convert(files.lora, output, overwrite=True)
    done = loraport.convert(files.lora, output, allow_partial=True, overwrite=True)
    assert done.dropped == ("diffusion_model.blocks.0.nonsense.lora_A.weight",)


def test_convert_and_verify_take_one_lora_of_several(two_in_one, tmp_path):
    output = tmp_path / "out.safetensors"
    for call in (lambda: loraport.convert(two_in_one, output), lambda: loraport.verify(two_in_one, load=False)):
        with pytest.raises(UsageError, match="motion"):
            call()
    assert loraport.convert(two_in_one, output, adapter="motion").layers == len(pico.LINEARS)
    assert all("blocks.1." in key for key in load_file(output))
    checks = loraport.verify(two_in_one, load=False, adapter="motion")
    assert checks.ok


def test_verify_asks_the_loader_unless_told_not_to(files):
    name = "diffusers loads it"
    assert name in [check.name for check in loraport.verify(files.lora).checks]
    assert name not in [check.name for check in loraport.verify(files.lora, load=False).checks]


def test_convert_and_verify_take_one_expert_of_two(files, tmp_path):
    both = {}
    for number, seed in ((1, 3), (2, 4)):
        for key, tensor in pico.lora(seed).items():
            both[key.replace("diffusion_model.", f"diffusion_model.transformer_{number}.")] = tensor
    save_file(both, files.lora)
    output = tmp_path / "out.safetensors"
    for call in (lambda: loraport.convert(files.lora, output), lambda: loraport.verify(files.lora, load=False)):
        with pytest.raises(UsageError, match="one for each expert"):
            call()
    loraport.convert(files.lora, output, expert="low")
    written = load_file(output)
    assert all(torch.equal(written[key], tensor) for key, tensor in pico.lora(4).items())
    checks = loraport.verify(files.lora, load=False, expert="low")
    assert checks.ok


def test_a_pattern_that_drops_nothing_is_a_usage_error(files, tmp_path):
    output, nothing = tmp_path / "out.safetensors", {"drop": "fnn"}
    save_file(
        pico.lora(7, rank=2, layers={"blocks.1.ffn.0": pico.LAYERS["blocks.1.ffn.0"]}), tmp_path / "few.safetensors"
    )
    for job in (
        lambda: loraport.convert(files.lora, output, to="diffusers", **nothing),
        lambda: loraport.transfer(files.lora, source=files.source, target=files.target, output=output, **nothing),
        lambda: loraport.merge([files.lora, tmp_path / "few.safetensors"], files.source, output, **nothing),
        lambda: loraport.resize(files.lora, output, rank=2, **nothing),
        lambda: loraport.extract(files.source, files.target, output, rank=2, **nothing),
    ):
        with pytest.raises(UsageError, match="nothing matches --drop") as caught:
            job()
        assert "blocks.0" in caught.value.values
        assert not output.exists()
    # Of several files one is enough; a layer of the model is meant whatever the file calls it.
    loraport.merge([files.lora, tmp_path / "few.safetensors"], files.source, output, drop=r"blocks\.0\.")
    loraport.convert(files.lora, tmp_path / "flat.safetensors", to="kohya")
    done = loraport.convert(tmp_path / "flat.safetensors", output, drop=r"0\.self_attn\.q$", overwrite=True)
    assert done.layers == len(pico.LAYERS) - 1


def test_a_pattern_that_is_none_is_a_usage_error(files, tmp_path):
    with pytest.raises(UsageError, match=r"drop is not a regular expression"):
        loraport.convert(files.lora, tmp_path / "out.safetensors", drop="(")
