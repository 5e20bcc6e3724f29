"""Programs that load the output: the rows, the page made of them, and what a user is told about a file."""

import re
import runpy
from importlib import resources
from pathlib import Path

import pytest
import torch

import hunyuan
import makers
from loraport.adapters.consumers import ALL, consumers, content_of, writable
from loraport.adapters.convert import convert
from loraport.adapters.dialect import PROFILE_NAMES, PROFILES, SAME_AS_INPUT
from loraport.adapters.loaders import loader_notes
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.models.architecture import detect
from loraport.models.families import families
from makers import PEFT, LoraFile, same, spell

DOCS = Path(__file__).parents[2] / "docs"
V = "diffusion_model."
BIAS = {f"{V}blocks.0.self_attn.q.diff_b": torch.ones(24)}
HEAD = {f"{V}head.head.diff_b": torch.ones(16)}
NORM = {f"{V}blocks.0.norm3.diff": torch.ones(24), f"{V}blocks.0.self_attn.norm_k.w_norm": torch.ones(24)}
MODULATION = {f"{V}blocks.1.diff_m": torch.ones(1, 6, 24)}
TEXT = {"lora_te_x.lora_up.weight": torch.ones(1)}
OUTSIDE = spell(makers.factors(outside=True), V, same, *PEFT)
IMAGE = spell(makers.factors(image=True), V, same, *PEFT)
ONE_LAYER = {key: tensor for key, tensor in makers.universal().items() if "blocks.0.self_attn.q." in key}


def _convert(tensors: dict, to: str, folder: Path):
    return convert(LoraFile(tensors).write(folder), folder / "x.safetensors", to=to)


class TestRows:
    def test_every_row_speaks_of_what_exists(self):
        for consumer in consumers():
            assert set(consumer.families) <= set(families())
            assert set(consumer.looked_at.values()) <= {"run", "part", "read"}
            for reading in consumer.families.values():
                assert set(reading.profiles) <= set(PROFILE_NAMES)
                for profile, row in reading.profiles.items():
                    # What a profile refuses to write cannot be lost by a program, except along with everything.
                    assert ALL in row or all(writable(profile, part) for part in row), (consumer.name, profile)
                    # What is applied wrongly is described, and the notes have words for it of common programs alone.
                    assert all(each.remark and consumer.common for each in row.values() if each.wrong)

    def test_every_profile_has_a_program_that_reads_it(self):
        for profile in {*PROFILES, SAME_AS_INPUT}:
            rows = [reading.profiles.get(profile) for c in consumers() for reading in c.families.values()]
            assert [row for row in rows if row is not None and ALL not in row], profile

    def test_the_pages_are_made_of_them(self):
        script = runpy.run_path(str(DOCS / "tables.py"))
        for path, made in script["pages"]().items():
            assert made == path.read_text("utf-8"), "run: python docs/tables.py"
        # A family with no place yet: put the mark of its table into consumers-video.md or consumers-images.md.
        assert sorted(script["placed"]()) == sorted(script["tables"]())

    def test_the_first_table_names_a_profile_where_an_ordinary_file_arrives(self, tmp_path):
        script = runpy.run_path(str(DOCS / "tables.py"))
        for to in PROFILES:
            content = content_of(to, dict.fromkeys(makers.layers(), 4), (), detect(makers.layers(), families()["wan"]))
            for consumer in consumers():
                named = re.search(r"\bWan\b", script["_read"](consumer, to)) is not None
                assert named == (content.reads(consumer) and not content.losses(consumer)), (consumer.name, to)

    def test_the_row_on_the_page_is_the_one_of_the_file(self):
        row = re.search(r"```yaml\n(.*?)```", (DOCS / "adding-a-consumer.md").read_text("utf-8"), re.DOTALL)
        assert row is not None
        assert row[1] in (resources.files("loraport.adapters") / "consumers.yaml").read_text("utf-8")

    def test_the_readme_names_the_families_of_which_diffusers_does_not_read_universal(self):
        reading = next(consumer for consumer in consumers() if consumer.name == "diffusers").families
        unread = {families()[name].title for name, each in reading.items() if ALL in each.profiles["universal"]}
        said = re.search(r"\(([^()]+) need `--to diffusers`", (DOCS.parent / "README.md").read_text("utf-8"))
        assert said is not None
        assert set(re.split(", | and ", said[1])) == unread


class TestNotes:
    @pytest.mark.parametrize(
        ("to", "tensors", "words"),
        [
            ("universal", OUTSIDE, ["layers outside the blocks are left out by LightX2V (lora_dynamic_apply)"]),
            ("universal", IMAGE, ["image projections are left out by FastVideo"]),
            ("universal", makers.universal() | BIAS, ["biases are left out by DiffSynth-Studio, CASA's loader,",
                                                      "FastVideo 0.2.1 (set_lora_adapter), VideoX-Fun and InvokeAI"]),
            ("universal", makers.universal() | HEAD | BIAS, ["biases are left out by LightX2V (lora_dynamic_apply)"]),
            ("universal", makers.universal() | NORM, ["diffusers leaves out norms/convolutions",
                                                      "norms/convolutions are left out by DiffSynth-Studio"]),
            ("universal", makers.universal() | MODULATION, ["no program applies the modulation from this file",
                                                            "LightX2V does with --to original"]),
            ("universal", makers.universal() | TEXT, ["diffusers does not load the file",
                                                      "with --to diffusers it does"]),
            ("original", makers.universal(), ["original profile is not read by diffusers (--to universal is read)"]),
            ("original", makers.universal() | MODULATION, ["the whole file is refused by", "Wan2GP"]),
            ("kohya", ONE_LAYER, ["diffusers does not load the file, because of layers missing in its blocks"]),
            ("kohya", makers.universal() | NORM, ["because of norms/convolutions", "musubi-tuner", "Wan2GP"]),
            ("same-as-input", makers.universal() | BIAS, ["diffusers does not load the file, because of biases",
                                                          "with --to universal it does"]),
            ("fastvideo", IMAGE, ["is not read by diffusers"]),
        ],
    )  # fmt: skip
    def test_what_a_program_drops_or_refuses_is_said(self, to, tensors, words, tmp_path):
        notes = _convert(tensors, to, tmp_path).warnings
        for word in words:
            assert word in "\n".join(notes)

    @pytest.mark.parametrize("to", ["universal", "diffusers", "kohya", "same-as-input"])
    def test_a_plain_file_needs_no_word(self, to, tmp_path):
        assert _convert(makers.universal(), to, tmp_path).warnings == ()

    def test_blocks_that_a_lora_leaves_out_at_the_end_are_no_fault(self, tmp_path):
        # diffusers reads kohya files of whole blocks, from the first on, however many the model has.
        first = {key: tensor for key, tensor in makers.universal().items() if "blocks.0." in key}
        lora = open_adapter(LoraFile(first).write(tmp_path))
        ranks = dict.fromkeys(lora.layers, 4)
        model = detect(makers.layers(), families()["wan"])
        assert loader_notes(content_of("kohya", ranks, (), model)) == ()
        del ranks["blocks.0.ffn.0"]
        assert "layers missing" in loader_notes(content_of("kohya", ranks, (), model))[0]

    def test_where_universal_is_not_for_everybody_it_says_so(self, tmp_path):
        tensors = {f"{name}.lora_{half}.weight": t for name, (b, a) in hunyuan.factors().items()
                   for half, t in (("A", a), ("B", b))}  # fmt: skip
        done = _convert(tensors, "universal", tmp_path / "a")
        assert done.warnings == ("a file of the universal profile is not read by diffusers (--to diffusers is read)",)
        assert [way.partition(": ")[0] for way in done.load] == ["ComfyUI"]
        done = _convert(tensors, "diffusers", tmp_path / "b")
        assert done.warnings == ()
        assert "pipe.transformer.load_lora_adapter(" in done.load[0]

    def test_it_is_never_a_wall_of_text(self, tmp_path):
        for to in ("universal", "original", "same-as-input"):
            notes = _convert(OUTSIDE | IMAGE | BIAS | NORM | MODULATION | TEXT, to, tmp_path / to).warnings
            assert 0 < len(notes) <= 3
            assert all(len(note) <= 240 for note in notes), [len(note) for note in notes]

    def test_of_an_unknown_spelling_nothing_is_claimed(self, tmp_path):
        tensors = spell(makers.factors(), "pipe.dit.", same, *PEFT) | {"pipe.dit.blocks.0.norm3.diff": torch.ones(24)}
        done = _convert(tensors, "same-as-input", tmp_path)
        assert done.warnings == ()
        assert done.load == ("with any program that loads the input, at strength 1.0",)


class TestWaysToLoad:
    @pytest.mark.parametrize(
        ("to", "tensors", "programs"),
        [
            ("universal", makers.universal(), ["diffusers", "ComfyUI"]),
            ("universal", makers.universal() | TEXT, ["ComfyUI", "LightX2V"]),
            ("kohya", ONE_LAYER, ["ComfyUI", "WanVideoWrapper"]),
            ("original", makers.universal(), ["LightX2V", "DiffSynth-Studio"]),
            ("fastvideo", makers.universal(), ["FastVideo", "InvokeAI"]),
        ],
    )
    def test_the_first_programs_that_take_it_are_named(self, to, tensors, programs, tmp_path):
        ways = _convert(tensors, to, tmp_path).load
        assert [way.partition(": ")[0] for way in ways] == programs
        assert any("x.safetensors" in way for way in ways)


class TestVerify:
    def _found(self, tensors: dict, to: str, folder: Path) -> list[str]:
        checks = verify_adapter(_convert(tensors, to, folder).output)
        return [f"{check.name}: {check.found}" for check in checks if " by" in check.name]

    def test_everybody_who_was_looked_at_is_listed(self, tmp_path):
        found = self._found(makers.universal() | BIAS | NORM, "universal", tmp_path)
        whole = ["ComfyUI", "LightX2V", "LightX2V (lora_dynamic_apply)", "WanVideoWrapper", "stable-diffusion.cpp"]
        assert found[0] == f"taken in full by: {', '.join(whole)}"
        assert "taken in part by: diffusers, Wan2GP (without norms/convolutions)" in found
        because = " (because of biases and norms/convolutions)"
        assert f"refused by: FastVideo 0.2.1 (set_lora_adapter), VideoX-Fun, InvokeAI{because}" in found
        assert found[-1] == "not read by: musubi-tuner"
        said = "; ".join(found)
        looked = [consumer.name for consumer in consumers() if "wan" in consumer.families]
        for name in sorted(looked, key=len, reverse=True):  # longest names first
            assert name in said
            said = said.replace(name, "")

    def test_a_file_in_nobodys_spelling_is_not_judged(self, tmp_path):
        path = LoraFile(spell(makers.factors(), "pipe.dit.", same, *PEFT)).write(tmp_path)
        assert not [check for check in verify_adapter(path) if check.name.startswith(("taken", "not read"))]
