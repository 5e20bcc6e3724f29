"""The pages on LoRA files about transfers: which files an option reaches, and what the header of an output has."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico as pico_files
from formats_page import quoted, rows
from loraport.adapters.convert import convert
from loraport.adapters.header import BASES
from loraport.adapters.parse import open_adapter
from loraport.containers.safetensors import read_header
from loraport.engine.match import open_inputs
from loraport.errors import UnmatchedKeysError, UsageError
from makers import LoraFile

LAYER, OTHER = "blocks.0.ffn.0", "blocks.1.ffn.0"


def pair(stem: str, name: str = "") -> dict[str, torch.Tensor]:
    return {f"{stem}.lora_A{name}.weight": torch.ones(2, 32), f"{stem}.lora_B{name}.weight": torch.ones(64, 2)}


class TestChoices:
    """One file as the LoRA that is carried over and as a distillation LoRA, opened as a transfer opens both."""

    @pytest.fixture
    def files(self, tmp_path):
        return pico_files.write(tmp_path)

    def scales(self, files, tensors, added="", **choices):
        """What each of the two multiplies its factors in the layer with; None where it leaves the layer out."""
        path, few = files.folder / "lora.safetensors", files.folder / "few.safetensors"
        save_file(tensors, path)
        save_file(tensors, few)
        recipe = loraport.Recipe(
            lora=str(path), source=str(files.source), target_lora=f"{few}{added}", method="direct", **choices
        )
        inputs = open_inputs(recipe)
        updates = inputs.adapter.layers.get(LAYER), inputs.added[0].update(LAYER)
        return [None if update is None else update.scale for update in updates]

    def test_the_rows(self):
        table = dict(rows("choice | which files it reaches"))
        assert table["`--drop`, `--allow-partial`"] == "the LoRA and every distillation LoRA"
        every, its_own = table["`--expert`, `--adapter`"], table["`--scale`, `--strength`"]
        assert every.startswith("every file that offers the choice; what a distillation LoRA says itself")
        assert quoted(every) == ["FILE:0.8:expert=high", "adapter="]
        assert its_own == "the LoRA; a distillation LoRA has its own (`FILE:STRENGTH:scale=0.5`)"
        assert len(table) == 3

    def test_drop_and_allow_partial(self, files):
        lora = load_file(files.lora)
        assert self.scales(files, lora) == [1.0, 1.0]
        assert self.scales(files, lora, drop=r"^blocks\.0\.ffn\.0$") == [None, None]
        del lora[f"diffusion_model.{LAYER}.lora_A.weight"]
        with pytest.raises(UnmatchedKeysError):
            self.scales(files, lora)
        assert self.scales(files, lora, allow_partial=True) == [None, None]

    def test_expert_and_adapter(self, files):
        """One of the two in the file has the layer, the other has not."""
        high, low = pair(f"diffusion_model.transformer_1.{LAYER}"), pair(f"diffusion_model.transformer_2.{OTHER}")
        a, b = pair(LAYER, ".a"), pair(OTHER, ".b")
        for tensors, choice, one, other in ((high | low, "expert", "high", "low"), (a | b, "adapter", "a", "b")):
            with pytest.raises(UsageError):
                self.scales(files, tensors)
            assert self.scales(files, tensors, **{choice: one}) == [1.0, 1.0]
            assert self.scales(files, tensors, **{choice: other}) == [None, None]
            assert self.scales(files, tensors, f":0.8:{choice}={one}", **{choice: other}) == [None, 0.8]

    def test_scale_and_strength(self, files):
        lora = load_file(files.lora)
        assert self.scales(files, lora, scale=4.0, strength=0.5) == [2.0, 1.0]
        assert self.scales(files, lora, ":3:scale=0.5") == [1.0, 1.5]


HEADER_ROWS = rows("key | content | `transfer` | `convert`")
GIVEN = {
    **{name: f"the input's {name}" for name in BASES},
    "format": "pt", "ss_network_dim": "4", "ss_network_alpha": "2", "modelspec.title": "style",
    "modelspec.implementation": "a trainer", "modelspec.sai_model_spec": "1.0.1",
    "ss_tag_frequency": '{"1_a": {"w": 1}}',
    "modelspec.trigger_phrase": "w", "sshs_model_hash": "0" * 64, "modelspec.hash_sha256": "0x" + "0" * 64,
    "sshs_legacy_hash": "0" * 8, "lora_adapter_metadata": '{"r": 4, "lora_alpha": 4}', "modelspec.date": "2026-01-01",
}  # fmt: skip


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """Of a transfer and a conversion of one file, whose header has every key that is spoken of; and the new rank."""
    files = pico_files.write(tmp_path_factory.mktemp("header"))
    few = {name: pico_files.LAYERS[name] for name in ("blocks.0.self_attn.q", "blocks.0.ffn.0")}
    path = LoraFile(pico_files.lora(3, layers=few), GIVEN).write(files.folder, "given.safetensors")
    options = loraport.RunOptions(cache="off", executor="serial", log="off")
    one = files.folder / "one.safetensors"
    loraport.transfer(path, source=files.source, target=files.target, output=one, options=options)
    convert(path, files.folder / "converted.safetensors", to="universal")
    assert str(files.folder).encode() not in one.read_bytes()
    made = [read_header(path).metadata for path in (one, files.folder / "converted.safetensors")]
    return *made, open_adapter(one).layers["blocks.0.ffn.0"].rank


class TestTheHeader:
    @pytest.mark.parametrize(
        ("keys", "content", "transfer", "convert"), HEADER_ROWS, ids=[row[0] for row in HEADER_ROWS]
    )
    def test_a_row(self, keys, content, transfer, convert, headers):
        if keys.startswith("`ss_tag_frequency`, trigger words"):
            keys += "`modelspec.trigger_phrase`"
        for said, header in zip((transfer, convert), headers[:2], strict=True):
            for key in quoted(keys):
                found, given = header.get(key), GIVEN.get(key)
                if said in ("", "removed", "(in the recipe)"):
                    assert found is None, key
                elif said in ("as in the input", "kept"):
                    assert found == given, key
                elif said == "alpha set to the rank where it was folded in":
                    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "4")
                else:
                    assert said in ("yes", "of the output"), said
                    assert found is not None, key
                    assert key in ("format", "ss_network_dim", "modelspec.sai_model_spec") or found != given, key

    def test_what_the_rows_say_of_the_content(self, headers):
        (transfer, convert), rank = headers[:2], str(headers[2])
        assert transfer["format"] == convert["format"] == "pt"
        assert transfer["ss_network_dim"] == transfer["ss_network_alpha"] == rank
        assert {transfer[name] for name in BASES} == {transfer["ss_base_model_version"]}
        assert transfer["modelspec.implementation"] == "loraport"
        assert json.loads(transfer["loraport.trained_on"]) == {name: GIVEN[name] for name in BASES}
        assert convert["loraport.profile"] == json.loads(transfer["loraport.recipe"])["to"] == "universal"
        digests = json.loads(transfer["loraport.inputs"])
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values())
        told = {"layers", "rank_in", "rank_out", "energy_kept_mean", "dropped"}
        assert set(json.loads(transfer["loraport.summary"])) >= told

    def test_no_key_is_left_out(self, headers):
        told = {key for row in HEADER_ROWS for key in quoted(row[0])} | {"modelspec.trigger_phrase"}
        assert set(headers[0]) | set(headers[1]) <= told
        assert set(GIVEN) <= told
