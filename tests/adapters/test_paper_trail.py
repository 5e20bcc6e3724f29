"""What programs that manage LoRAs read of an output: hashes, the model it is for, what is known of the training."""

import hashlib
import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from loraport.adapters.header import build_metadata
from loraport.adapters.render import write_adapter
from loraport.adapters.training import read_training

OURS = {"loraport.version": "1"}


def _header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("rows", [3, 5000])  # the second is larger than a mebibyte, where the older hash begins
def test_the_hashes_are_those_that_trainers_write(rows, tmp_path):
    """By the stock writer, from a file with no other texts than those of the training, as kohya's trainers do it."""
    made = torch.Generator().manual_seed(0)
    tensors = {
        "b.lora_A.weight": torch.randn(2, rows, generator=made).bfloat16(),
        "a.lora_B.weight": torch.randn(rows, 64, generator=made),
        "a.alpha": torch.tensor(1.0),
    }
    given = {"ss_network_dim": "2", "ss_tag_frequency": '{"größe": {"a\\n\x1f": 1}}', "modelspec.title": "x", **OURS}
    write_adapter(tmp_path / "out.safetensors", tensors, {**given, "sshs_model_hash": "that of another file"})
    found = _header(tmp_path / "out.safetensors")
    raw = (tmp_path / "out.safetensors").read_bytes()
    data = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    own = {name: text for name, text in found.items() if name.startswith("ss_")}
    alone = safetensors.torch.save(tensors, own)
    assert hashlib.sha256(alone[8 + int.from_bytes(alone[:8], "little") :]).hexdigest() == data
    assert found["sshs_model_hash"] == data
    assert found["modelspec.hash_sha256"] == f"0x{data}"
    assert found["sshs_legacy_hash"] == hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]
    assert {name: found[name] for name in given} == given


def test_a_header_that_is_not_ours_gets_no_hashes(tmp_path):
    write_adapter(tmp_path / "out.safetensors", {"a": torch.ones(2)}, {"format": "pt"})
    assert _header(tmp_path / "out.safetensors") == {"format": "pt"}


def test_the_base_is_the_target_and_what_it_was_trained_on_is_still_known(tmp_path):
    tags = json.dumps({"10_cats": {"inkwash": 12, "cat": 3}})
    trained = {
        "ss_base_model_version": "wan2.1 base", "base_model": "Wan-AI/Wan2.1-T2V-1.3B", "ss_steps": "1200",
        "ss_tag_frequency": tags, "modelspec.trigger_phrase": "inkwash", "modelspec.license": "cc-by-4.0",
        "modelspec.tags": "ink", "sshs_model_hash": "0" * 64,
    }  # fmt: skip

    def transferred(metadata, target):
        return build_metadata(
            input_metadata=metadata, recipe={}, inputs={}, method="casa 1", summary={}, rank=4, target_title=target
        )

    assert transferred({}, "Wan fast")["ss_base_model_version"] == "Wan fast"
    found = transferred(trained, "Wan fast")
    assert found["ss_base_model_version"] == found["base_model"] == "Wan fast"
    assert "sshs_model_hash" not in found
    for name in ("ss_steps", "ss_tag_frequency", "modelspec.trigger_phrase", "modelspec.license", "modelspec.tags"):
        assert found[name] == trained[name]
    again = transferred(found, "Wan faster")
    assert again["base_model"] == "Wan faster"
    before = read_training(tmp_path / "x.safetensors", trained)
    for one in (found, again):
        assert read_training(tmp_path / "x.safetensors", one) == before
    assert before.base == ("Wan-AI/Wan2.1-T2V-1.3B", "wan2.1 base")
    assert (before.trigger, before.license) == ("inkwash", "cc-by-4.0")
