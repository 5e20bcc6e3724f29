"""Pages of real runs on a tiny model: what a file says in its header and in its keys is shown, and does nothing."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.report import render_page
from loraport.report.analysis_page import render_analysis_page
from loraport.report.card import render_card
from loraport.report.check_page import render_check_page
from opened_pages import unpacked

EVIL = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"
METADATA = {"ss_training_comment": EVIL, "ss_base_model_version": EVIL, "modelspec.title": EVIL, "trigger_phrase": EVIL}
OPTIONS = loraport.RunOptions(log="off")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pico.Pico:
    """A LoRA with markup in its header and in a key, and a target in a folder that names a well-known model."""
    made = pico.write(tmp_path_factory.mktemp("pico"))
    lora = load_file(made.lora) | {f"diffusion_model.blocks.0.{EVIL}.lora_A.weight": torch.ones(4, 32)}
    save_file(lora, made.lora, metadata=METADATA)
    target = made.folder / "FastWan2.1" / "model.safetensors"
    target.parent.mkdir()
    made.target.rename(target)
    return pico.Pico(made.folder, made.source, target, made.lora)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> loraport.RunOptions:
    return OPTIONS.model_copy(update={"cache": tmp_path_factory.mktemp("cache")})


@pytest.fixture(scope="module")
def before(files: pico.Pico, cache: loraport.RunOptions) -> loraport.CheckResult:
    return loraport.check(files.lora, source=files.source, target=files.target, options=cache)


@pytest.fixture(scope="module")
def report(files: pico.Pico, cache: loraport.RunOptions, before: loraport.CheckResult) -> loraport.TransferReport:
    """After `before`, so that nothing is remembered there."""
    return loraport.transfer(
        files.lora, source=files.source, target=files.target, output=files.folder / "out.safetensors",
        allow_partial=True, rank=32, options=cache,
    )  # fmt: skip


def _harmless(page: str) -> None:
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img" not in page
    assert not re.search(r"<[^>]* on[a-z]+=", page)
    assert "owned" in page or "onerror" in page  # it is shown


def test_a_transfer_of_such_a_file(report: loraport.TransferReport):
    page = render_page(json.loads(json.dumps(report.to_json())))
    _harmless(page)
    assert "Options: <code>--allow-partial --rank 32</code>" in page
    assert '<p class="verdict plain">converted</p>' in page
    opened = unpacked(page)
    assert len(opened) == len(report.layers)
    for figures in opened:
        assert [title in figures for title in ("The drift.", "Drift undone.", "Entries arbitrated.")] == [True] * 3
        assert figures.count('role="img" aria-label="') == figures.count("<svg") > 6
    assert "no maps" not in page


def test_its_page_says_how_the_target_is_sampled(files: pico.Pico, report: loraport.TransferReport):
    page = render_page(report.to_json())
    known = report.summary.target_known
    assert known.name == "FastWan2.1"
    assert "at the times 1000, 757, 522 (of 1000), guidance off, with fresh noise at each step" in page
    assert "custom sampler lcm with the sigmas 1, 0.757, 0.522, 0, cfg 1" in page
    assert page.index("put out.safetensors into models/loras") < page.index("custom sampler lcm")
    assert "- ComfyUI, to sample: `custom sampler lcm" in render_card(report.to_json())
    (files.target.parent / "inference_config.json").write_text(json.dumps({"num_inference_steps": 3}))
    found = loraport.check(files.lora, source=files.source, target=files.target, options=OPTIONS)
    (files.target.parent / "inference_config.json").unlink()
    assert found.target_known is None
    assert "num_inference_steps 3" in found.target_usage


def test_a_card_names_files_in_lines_of_its_own(report: loraport.TransferReport):
    """Names of files may hold line breaks, and marks that turn round what follows."""
    odd = "ink\n\n# Buy \u202eit|`.safetensors"
    told = report.to_json()
    told["summary"] |= {"lora": odd, "target_lora": [{"file": odd, "strength": 0.5, "usage": "4 steps\n# now"}]}
    card = render_card(told)
    shown = "`ink # Buy ⟨U+202E⟩it\\|'.safetensors`"
    assert f"| LoRA | {shown} |" in card
    assert f"- Use it together with {shown} at strength 0.5: 4 steps \\# now" in card
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# out"]
    assert "restore yes" in card


def test_a_check_of_such_a_file(before: loraport.CheckResult):
    page = render_check_page(before)
    _harmless(page)
    assert "Use the steps, shift and guidance of the target" in page
    assert "custom sampler lcm" in page
    assert before.kind.name == "distribution matching"
    assert "FastWan2.1" in before.kind.sentence


def test_a_check_has_the_digests_that_are_known(
    files: pico.Pico, cache: loraport.RunOptions, before: loraport.CheckResult, report: loraport.TransferReport
):
    """Of the LoRA, which is read; of the models once a transfer has read them: the same numbers as it has."""
    theirs = {each.role: each.digest for each in report.inputs}
    first = {each.role: (each.digest, each.header) for each in before.inputs}
    assert first["LoRA"] == (theirs["LoRA"], None)
    assert first["source"][0] is None
    assert first["source"] == first["target"]  # two models of one layout
    found = loraport.check(files.lora, source=files.source, target=files.target, options=cache)
    assert {each.role: each.digest for each in found.inputs} == theirs
    assert all(digest in render_check_page(found) for digest in theirs.values())
    assert first["source"][1] in render_check_page(before)
    again = loraport.check(
        files.lora, source=files.source, target=files.target, options=OPTIONS.model_copy(update={"cache": "off"})
    )
    assert {each.role: each.digest for each in again.inputs} == {**theirs, "source": None, "target": None}


@pytest.mark.slow
def test_an_analysis_has_the_digests_of_a_transfer(
    files: pico.Pico, cache: loraport.RunOptions, report: loraport.TransferReport
):
    found = loraport.analyze(files.source, files.target, files.lora, allow_partial=True, options=cache)
    theirs = {each.role: each.digest for each in report.inputs}
    assert {each.role.split()[0]: each.digest for each in found.inputs} == theirs
    page = render_analysis_page(found)
    assert all(digest in page for digest in theirs.values())
    assert "Options: <code>--allow-partial</code>" in page
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found
