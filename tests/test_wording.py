"""Numbers in sentences: one of a thing is no plural, and a share that is not all never reads as all."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.adapters.verify import verify_adapter
from loraport.errors import UnmatchedKeysError
from loraport.report import read_run, render_page
from loraport.wording import count, percent, share


@pytest.mark.parametrize(
    ("number", "said"), [(0, "no keys were"), (1, "1 key was"), (2, "2 keys were"), (1200, "1,200 keys were")]
)
def test_counts(number, said):
    assert count(number, "key", "was/were") == said
    assert count(number, "key") == said.rpartition(" ")[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [(1.0, "100 %"), (1.0000001, "100 %"), (0.9999999, "99.9999 %"), (0.9996, "99.9600 %"), (0.9912, "99.12 %"),
     (0.853, "85.3 %"), (0.0004, "< 0.1 %"), (0.0, "0.0 %"), (1.0132, "101 %"), (1.49, "149 %")],
)  # fmt: skip
def test_shares(value, said):
    assert share(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0 %"), (1e-7, "< 0.001 %"), (0.0023, "0.23 %"), (0.141, "14 %"), (0.999, "100 %"), (1.12, "112 %"),
     (31.4, "3140 %")],
)  # fmt: skip
def test_ratios(value, said):
    assert percent(value) == said


def test_one_layer_is_one_in_messages_and_on_the_page(tmp_path):
    """A LoRA of one layer, one of whose keys is left out."""
    files, few = pico.write(tmp_path / "pico"), {"blocks.0.ffn.0": pico.LAYERS["blocks.0.ffn.0"]}
    save_file(pico.lora(3, layers=few), files.lora)
    output = tmp_path / "out.safetensors"
    loraport.transfer(files.lora, source=files.source, target=files.target, output=output)
    page = render_page(read_run(output.with_suffix(".run.jsonl")))
    assert "1 layer, method casa" in page
    assert "100.0 %" not in page
    said = [check.found for check in verify_adapter(output)]
    assert "2 keys, 1 layer" in said
    assert not any("1 layers" in each for each in said)
    tensors = load_file(files.lora)
    tensors["diffusion_model.nonsense.diff"] = torch.ones(4, 4)
    save_file(tensors, files.lora)
    with pytest.raises(UnmatchedKeysError, match="1 of 3 keys"):
        loraport.convert(files.lora, output, overwrite=True)
    done = loraport.convert(files.lora, output, overwrite=True, allow_partial=True)
    assert any("1 key was left out" in each for each in done.warnings)
