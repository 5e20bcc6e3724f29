"""Files of very many keys, each of which would need a look: the work that one key costs is bounded and small."""

import json
from contextlib import suppress
from difflib import SequenceMatcher

import pytest

from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.errors import LoraportError
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from loraport.models.family import MAX_BLOCKS
from loraport.models.keymap import keymap_of

COUNT = 200
KEYS = {
    "unknown": [f"thing_{i}.q.lora_{'AB'[i % 2]}.weight" for i in range(COUNT)],
    "nearly known": [f"diffusion_model.blocks.{i}.self_attn.qq.lora_A.weight" for i in range(COUNT)],
    "known, of too many blocks": [f"diffusion_model.blocks.{10**6 + i}.ffn.0.lora_A.weight" for i in range(COUNT)],
    "halves": [f"diffusion_model.blocks.{i % 150}.ffn.{2 * (i // 150)}.lora_A.weight" for i in range(COUNT)],
}


def _write(folder, keys):
    header = {key: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * i, 4 * i + 4]} for i, key in enumerate(keys)}
    raw = json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4 * len(keys)))
    return path


@pytest.mark.parametrize("kind", KEYS)
def test_comparisons_of_names_do_not_grow_with_the_number_of_keys(kind, tmp_path, monkeypatch):
    path = _write(tmp_path, KEYS[kind])
    compared = []
    ratio = SequenceMatcher.ratio
    monkeypatch.setattr(SequenceMatcher, "ratio", lambda self: compared.append(1) or ratio(self))
    looked_up = []
    for family in families().values():
        table = type(keymap_of(family))
        resolve = table.resolve
        monkeypatch.setattr(table, "resolve", lambda self, *path, of=resolve: looked_up.append(1) or of(self, *path))
        break
    for look in (open_adapter, describe, open_checkpoint):
        with suppress(LoraportError):
            look(path)
    names = sum(len(keymap_of(family).dotted) for family in families().values())
    assert len(compared) <= 20 * names
    assert len(looked_up) <= 15 * len(families()) * len(KEYS[kind])


@pytest.mark.parametrize(
    "path", ["blocks." * 10**5, "model." * 10**5 + "x", "1." * 10**5, "x" * 10**6, "lora_unet_" * 10**5]
)
def test_long_names(path):
    for family in families().values():
        assert keymap_of(family).resolve(path) is None
        keymap_of(family).nearest(path)


def test_block_numbers_are_bounded():
    keymap = keymap_of(families()["wan"])
    assert keymap.resolve(f"blocks.{MAX_BLOCKS - 1}.ffn.0") is not None
    for number in (MAX_BLOCKS, 10**9, "007", "-1", "²"):
        assert keymap.resolve(f"blocks.{number}.ffn.0") is None
