"""The pages on LoRA files about what is read and what becomes of it: every row is done with a small file.

The other tables are held where their subjects are tested: kinds and refusals in `kinds/test_new_kind.py`, distillation
LoRAs in `test_distillation_loras.py`, output profiles and the spelling of changes in `test_passed_on.py`, options and
the header of outputs in `engine/test_formats_of_a_transfer.py`.
"""

import re
from dataclasses import dataclass, field
from importlib import resources

import pytest
import torch

import makers
from corpus import CORPUS, write
from formats_page import PAGES, quoted, rows
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.parse import open_adapter
from loraport.adapters.training import Training, read_training
from loraport.containers.tensors import read_float
from loraport.errors import UnmatchedKeysError, UnsupportedError
from loraport.models.keys import read_yaml
from makers import KOHYA, PEFT, LoraFile, diffusers_name, fastvideo_name, flat, same, spell

READ = dict(rows("part"))
PREFIXES = quoted(READ["prefix"])
FLAT = quoted(READ["prefix"].partition("underscores for dots")[2])


class TestWhatIsRead:
    def test_no_part_is_missing(self):
        parts = {"prefix", "layer", "suffix of the factors", "other kinds", "scale", "further changes", "other models"}
        assert set(READ) == parts
        rules = read_yaml((resources.files("loraport.models") / "keys.yaml").read_text("utf-8"))
        assert set(PREFIXES) == {*rules["prefixes"], *rules["flat_prefixes"]}
        assert set(FLAT) == set(rules["flat_prefixes"])
        assert {name.removesuffix("...") for name in quoted(READ["other models"])} == set(grammar().text_encoders)
        named = {*quoted(READ["scale"]), *quoted(READ["further changes"])}
        assert named == {text for part, text in grammar().parts.items() if part != "lora_bias_named"}

    @pytest.mark.parametrize("prefix", ["", *PREFIXES])
    def test_prefixes(self, prefix, tmp_path):
        name = flat if prefix in FLAT else same
        adapter = open_adapter(LoraFile(spell(makers.factors(), prefix, name, *PEFT)).write(tmp_path))
        assert adapter.layers.keys() == makers.layers().keys()
        assert adapter.dialect.prefix == prefix
        if prefix == "base_model.model.":
            assert "one or several of" in READ["prefix"]
            for second in ("diffusion_model.", "transformer."):
                path = LoraFile(spell(makers.factors(), prefix + second, same, *PEFT)).write(tmp_path, "2.safetensors")
                assert open_adapter(path).layers.keys() == makers.layers().keys()

    def test_layers(self, tmp_path):
        row = "original, diffusers or FastVideo names, dotted or flattened, and the mixtures that half-done "
        assert READ["layer"] == row + "conversions leave behind"
        for spelled in (same, diffusers_name, fastvideo_name):
            for prefix, name in (("", spelled), ("lora_unet_", lambda layer: flat(spelled(layer)))):  # noqa: B023
                path = LoraFile(spell(makers.factors(), prefix, name, *KOHYA)).write(tmp_path)
                assert open_adapter(path).layers.keys() == makers.layers().keys(), (spelled, prefix)
        assert len(open_adapter(write("hybrid", tmp_path)).layers) == CORPUS["hybrid"]["expect"]["layers"]

    def test_suffixes(self, tmp_path):
        """Those of the page, each with its other half; and those of the grammar are the page's."""
        ends = [end for end in quoted(READ["suffix of the factors"]) if end != ".weight"]
        assert "without `.weight`" in READ["suffix of the factors"]
        ends += [end.removesuffix(".weight") for end in ends if re.fullmatch(r"\.lora_[AB]\.weight", end)]
        other = str.maketrans({"A": "B", "B": "A"})
        pairs = set()
        for end in ends:
            if "lora_A" in end or "lora_B" in end:
                pairs.add(tuple(sorted((end, end.translate(other)))))
            else:
                pairs.add((end.replace("up.", "down."), end.replace("down.", "up.")))
        known = {tuple(text.replace("<adapter>", "default") for text in p.values()) for p in grammar().styles.values()}
        assert pairs == known
        some = dict(list(makers.factors().items())[:2])
        for down, up in pairs:
            adapter = open_adapter(LoraFile(spell(some, "", diffusers_name, down, up)).write(tmp_path))
            for layer, update in makers.deltas(some).items():
                torch.testing.assert_close(adapter.layers[layer].load().dense().double(), update, rtol=1e-5, atol=1e-5)

    def test_scales(self, tmp_path):
        """Alpha 8 of rank 4, and a scalar of 2, double the update."""
        made, (plain,) = makers.factors(), {update.scale for update in open_adapter(
            LoraFile(makers.universal()).write(tmp_path)).layers.values()}  # fmt: skip
        ends = quoted(READ["scale"])
        assert ends == [".alpha", ".lora_alpha", ".lora_rank", ".scalar"]
        for end, number, more in ((".alpha", 8.0, {}), (".lora_alpha", 8.0, {".lora_rank": 4}), (".scalar", 2.0, {})):
            tensors = spell(made, "", same, *KOHYA)
            for layer in made:
                tensors |= {f"{layer}{key}": torch.tensor(value) for key, value in {end: number, **more}.items()}
            for update in open_adapter(LoraFile(tensors).write(tmp_path)).layers.values():
                assert update.scale == 2 * plain, end

    def test_further_changes(self, tmp_path, pico):
        places = {".diff_m": ("blocks.0", (1, 6, 24)), ".lora_B.bias": ("blocks.0.self_attn.q", (24,))}
        for end in quoted(READ["further changes"]):
            place, shape = places.get(end, ("blocks.0.norm3", (24,)))
            key = f"diffusion_model.{place}{end}"
            adapter = open_adapter(LoraFile(makers.universal() | {key: torch.ones(shape)}).write(tmp_path), pico)
            assert [item.keys for item in adapter.passthrough] == [(key,)]

    def test_other_models(self, tmp_path):
        for name in quoted(READ["other models"]):
            stem = f"{name.removesuffix('...')}x.q_proj"
            more = {f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(8, 2)}
            adapter = open_adapter(LoraFile(makers.universal() | more).write(tmp_path))
            assert {key for item in adapter.passthrough for key in item.keys} == set(more)

    def test_trainers(self):
        sentence = PAGES["formats"].partition("Written by, among others: ")[2].partition(".")[0]
        told = " ".join(entry["about"] for entry in CORPUS.values())
        for trainer in re.split(r", (?:and the trainers of )?| / | and ", sentence):
            assert trainer in told, trainer


# Header and what is beside the file -> what it tells. `lora_adapter_metadata` and `adapter_config.json` hold one field.
PEFT_BASE = '{"base_model_name_or_path": "a"}'
TOLD = {
    "software": ({"software": "ai-toolkit"}, {"trainer": "ai-toolkit"}),
    "ot_branch": ({"ot_branch": "master"}, {"trainer": "OneTrainer"}),
    "ss_network_module": ({"ss_network_module": "networks.lora_wan"}, {"trainer": "musubi-tuner"}),
    "ss_sd_model_name": ({"ss_sd_model_name": "a"}, {"base": ("a",)}),
    "base_model_name_or_path": ({}, {"base": ("a",)}),
    "lora_adapter_metadata": ({"lora_adapter_metadata": PEFT_BASE}, {"base": ("a",)}),
    "adapter_config.json": ({}, {"base": ("a",)}),
    "adapter_model": ({}, {"base": ("a",)}),
    "ot_config": (
        {"ot_config": '{"base_model_name": "a", "lora_rank": 4, "lora_alpha": 2}'},
        {"trainer": "OneTrainer", "base": ("a",), "rank": 4.0, "alpha": 2.0},
    ),
    **{name: ({name: "a"}, {"base": ("a",)}) for name in ("ss_base_model", "base_model", "ss_base_model_version")},
    "ss_steps": ({"ss_steps": "9"}, {"steps": 9}),
    "steps": ({"steps": "9"}, {"steps": 9}),
    "ss_epoch": ({"ss_epoch": "3"}, {"epochs": 3}),
    "training_info": ({"training_info": '{"step": 9, "epoch": 3}'}, {"steps": 9, "epochs": 3}),
    "ss_network_dim": ({"ss_network_dim": "4"}, {"rank": 4.0}),
    "ss_network_alpha": ({"ss_network_alpha": "2"}, {"alpha": 2.0}),
    "modelspec.timestep_range": ({"modelspec.timestep_range": "1,9"}, {"timesteps": (1, 9)}),
    **{name: ({name: "w"}, {"trigger": "w"}) for name in ("modelspec.trigger_phrase", "trigger_word", "trigger_words")},
    "ss_tag_frequency": ({"ss_tag_frequency": '{"1_a": {"w": 1}}'}, {"tags": ("w",)}),
    "ss_training_comment": ({"ss_training_comment": "c"}, {"comment": "c"}),
    **{name: ({name: "free"}, {"license": "free"}) for name in ("modelspec.license", "license")},
}
FIELDS = {
    "trainer": ["trainer"], "base model": ["base"], "steps, epochs": ["steps", "epochs"],
    "rank, alpha": ["rank", "alpha"], "trained time steps": ["timesteps"],
    "trigger, tags, remark": ["trigger", "tags", "comment"], "license": ["license"],
}  # fmt: skip


class TestWhatTheHeaderSays:
    def test_every_fact_has_its_row_and_every_key_its_fact(self):
        assert [row[0] for row in rows("what | read from")] == list(FIELDS)
        assert {field for fields in FIELDS.values() for field in fields} == set(Training.__dataclass_fields__)
        assert {key for _, cell in rows("what | read from") for key in quoted(cell)} == set(TOLD)

    @pytest.mark.parametrize(("what", "cell"), rows("what | read from"))
    def test_the_keys_of_a_row_tell_it(self, what, cell, tmp_path):
        beside = tmp_path / "adapter_config.json"
        for key in quoted(cell):
            header, told = TOLD[key]
            if not header:
                beside.write_text(PEFT_BASE, encoding="utf-8")
            found = read_training(tmp_path / "adapter_model.safetensors", header)
            beside.unlink(missing_ok=True)
            assert found == Training(**told)
            assert set(told) & set(FIELDS[what]), key

    def test_what_the_rows_say_besides(self, tmp_path):
        lora = tmp_path / "lora.safetensors"
        text = dict(rows("what | read from"))
        assert "not the names of Stable Diffusion" in text["base model"]
        assert read_training(lora, {"ss_base_model_version": "sd_1.5"}) == Training()
        assert "the only tag of ai-toolkit" in text["trigger, tags, remark"]
        told = read_training(lora, TOLD["software"][0] | TOLD["ss_tag_frequency"][0])
        assert told == Training(trainer="ai-toolkit", trigger="w")


V, W = "diffusion_model.", "base_model.model."
MATRIX, VECTOR, KERNEL = torch.ones(24, 24), torch.ones(24), torch.ones(24, 4, 1, 2, 2)
TABLE = torch.ones(1, 6, 24)


def pair(stem: str, out: int = 24, into: int = 24, name: str = "") -> dict[str, torch.Tensor]:
    return {f"{stem}.lora_A{name}.weight": torch.ones(2, into), f"{stem}.lora_B{name}.weight": torch.ones(out, 2)}


@dataclass
class Case:
    """Keys of which a row speaks, others in the same file, and what is chosen where it is opened."""

    tensors: dict[str, torch.Tensor]
    beside: dict[str, torch.Tensor] = field(default_factory=lambda: pair(f"{V}blocks.1.cross_attn.k"))
    options: dict[str, str] = field(default_factory=dict)


def _saved(name: str, tensor: torch.Tensor) -> Case:
    return Case({W + name: tensor}, pair(f"{W}blocks.1.cross_attn.k"))


CONVOLUTION = {f"{V}patch_embedding.lora_down.weight": torch.ones(3, 4, 1, 2, 2),
               f"{V}patch_embedding.lora_up.weight": torch.ones(24, 3, 1, 1, 1)}  # fmt: skip
# How a row begins -> what it speaks of.
CASES = {
    "the parts of an update of a linear layer": [
        Case(pair(f"{V}blocks.1.ffn.0", 48) | {f"{V}blocks.1.ffn.0.alpha": torch.tensor(1.0)})
    ],
    "`.diff`, `.set_weight` of a linear": [
        Case({f"{V}blocks.0.self_attn.q{end}": MATRIX}) for end in (".diff", ".set_weight")
    ],
    "`.diff_b`, `.b_norm`, `.lora_B.bias`": [
        Case({f"{V}{key}": VECTOR})
        for key in ("blocks.0.self_attn.q.diff_b", "blocks.0.norm3.b_norm", "blocks.1.cross_attn.k.lora_B.bias")
    ],
    "`.diff`, `.w_norm` of a norm or a convolution": [
        Case({f"{V}blocks.0.norm3.diff": VECTOR}), Case({f"{V}blocks.0.norm3.w_norm": VECTOR}),
        Case({f"{V}patch_embedding.diff": KERNEL}),
    ],
    "`.diff_m`, `.diff` of a bare parameter": [
        Case({f"{V}blocks.0.diff_m": TABLE}), Case({f"{V}blocks.0.modulation.diff": TABLE})
    ],
    "the parts of an update of a convolution": [Case(CONVOLUTION)],
    "a weight of a linear layer that": [_saved("head.head.weight", torch.ones(16, 24))],
    "a bias, norm, convolution or bare": [
        _saved("blocks.0.norm3.bias", VECTOR), _saved("blocks.0.self_attn.q.base_layer.bias", VECTOR),
        _saved("patch_embedding.weight", KERNEL), _saved("blocks.0.modulation", TABLE),
    ],
    "`.original_module.` of the same file": [Case(
        {f"{W}head.head.original_module.weight": torch.ones(16, 24)},
        _saved("head.head.modules_to_save.default.weight", torch.ones(16, 24)).tensors | pair(f"{W}blocks.1.ffn.0", 48),
    )],
    "`.ia3_l` of the rows": [Case({f"{W}blocks.1.ffn.0.ia3_l": torch.ones(48, 1)}, {})],
    "keys of a text encoder": [Case(pair("lora_te_text_model_layers_0_mlp_fc1"))],
    "what `--drop REGEX` finds": [
        Case(pair(f"{V}blocks.1.ffn.2", 24, 48), options={"drop": drop})
        for drop in (r"^diffusion_model\.blocks\.1\.ffn\.2\.lora", r"^blocks\.1\.ffn\.2$")
    ],
    "the other expert, the other adapters": [
        Case(pair(f"{V}transformer_1.blocks.1.ffn.0", 48), pair(f"{V}transformer_2.blocks.1.ffn.0", 48),
             {"expert": "low"}),
        Case(pair("blocks.1.ffn.0", 48, name=".a"), pair("blocks.1.ffn.0", 48, name=".b"), {"adapter": "b"}),
    ],
    "anything else, and half of a pair": [
        Case({f"{V}blocks.0.self_attn.qq.lora_A.weight": torch.ones(2, 24)}),
        Case({f"{V}blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 24)}),
    ],
}  # fmt: skip
BECOMES = [(key, outcome) for key, outcome in rows("key | what happens")]


class TestWhatBecomesOfEveryKey:
    def test_every_row_has_its_files(self):
        assert len(BECOMES) == len(CASES)
        assert all(key.startswith(begins) for (key, _), begins in zip(BECOMES, CASES, strict=True))

    @pytest.mark.parametrize(("key", "outcome"), BECOMES, ids=[key[:30] for key, _ in BECOMES])
    def test_it_happens(self, key, outcome, tmp_path, pico):
        for case in next(cases for begins, cases in CASES.items() if key.startswith(begins)):
            path = LoraFile(case.beside | case.tensors).write(tmp_path)
            keys = set(case.tensors)
            if outcome.startswith("an error that names the nearest known key; with `--allow-partial` dropped"):
                with pytest.raises(UnmatchedKeysError, match=r"blocks\.0\.self_attn\.q\b"):
                    open_adapter(path, pico)
                assert set(open_adapter(path, pico, allow_partial=True).dropped) == keys
                continue
            adapter = open_adapter(path, pico, **case.options)
            places = {
                "transferred": {key for layer in adapter.layers.values() for key in layer.keys},
                "passed through": {key for item in adapter.passthrough for key in item.keys},
                "dropped and listed": set(adapter.dropped),
            }
            told = next(place for place in places if outcome.startswith(place))
            for place, found in places.items():
                also = place == "passed through" and "the bias is passed through" in outcome
                assert (keys <= found) if place == told or also else keys.isdisjoint(found), (place, found)

    def test_every_kind_is_transferred(self, tmp_path):
        """The parts of all kinds that there are, as their trainers write them."""
        names = ("musubi", "lightx2v-extraction", "lokr-musubi", "loha-musubi", "split-kohya", "vera-peft", "dora",
                 "oft-onetrainer", "glora-lycoris", "ia3-peft")  # fmt: skip
        files = {name: write(name, tmp_path / name) for name in (*names, "cogvideox-sat")}
        scales = {"cogvideox-sat": 1.0}  # which its file never says
        adapters = [open_adapter(path, scale=scales.get(name)) for name, path in files.items()]
        kinds = {layer.kind for adapter in adapters for layer in adapter.layers.values()}
        assert kinds == set(KINDS) - {"set_weight"}  # which the row below it has

    def test_numbers(self, tmp_path, pico):
        """What the rows say of numbers: of a whole matrix, of a kernel, and of what was saved whole."""
        said = dict(BECOMES)
        for end, change in ((".diff", MATRIX), (".set_weight", None)):
            layer = "blocks.0.self_attn.q"
            adapter = open_adapter(LoraFile({f"{V}{layer}{end}": MATRIX}).write(tmp_path), pico)
            wanted = MATRIX - read_float(pico.tensors[f"{layer}.weight"]) if change is None else change
            torch.testing.assert_close(adapter.layers[layer].load().dense(), wanted)
            assert adapter.layers[layer].rank == 24
        adapter = open_adapter(LoraFile(pair(f"{V}blocks.1.ffn.0", 48) | CONVOLUTION).write(tmp_path), pico)
        assert "multiplied out to a `.diff` of the whole weight" in said[BECOMES[5][0]]
        assert torch.equal(adapter.passthrough[0].load(), 3 * KERNEL)
        assert "PEFT's OFT and IA3 on a convolution are refused" in said[BECOMES[5][0]]
        for part, config in (({"oft_R.weight": torch.ones(4, 6)}, {"peft_type": "OFT", "oft_block_size": 4}),
                             ({"ia3_l": torch.ones(24, 1, 1, 1, 1)}, {"peft_type": "IA3"})):  # fmt: skip
            tensors = {f"{W}patch_embedding.{end}": tensor for end, tensor in part.items()}
            path = LoraFile(tensors, {}, config).write(tmp_path, "adapter_model.safetensors")
            with pytest.raises(UnsupportedError, match="on a convolution") as caught:
                open_adapter(path, pico)  # nothing is read for it
            assert "--drop patch_embedding" in caught.value.fix
        (tmp_path / "adapter_config.json").unlink()
        saved = _saved("head.head.weight", torch.ones(16, 24)), _saved("patch_embedding.weight", KERNEL.half())
        path = LoraFile(pair(f"{W}blocks.1.ffn.0", 48) | saved[0].tensors | saved[1].tensors).write(tmp_path)
        adapter = open_adapter(path, pico)
        head, patch = (read_float(pico.tensors[f"{name}.weight"]) for name in ("head.head", "patch_embedding"))
        assert adapter.layers["head.head"].kind == "set_weight"
        torch.testing.assert_close(adapter.layers["head.head"].load().dense(), 1 - head)
        torch.testing.assert_close(adapter.passthrough[0].load(), 1 - patch)
