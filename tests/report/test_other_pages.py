"""The pages of a check and of an analysis: they say what was found, in figures and in words, and stay small."""

import base64
import gzip
import re
from dataclasses import replace

import pytest

import findings
from loraport.analysis.quantities import Measured
from loraport.report import frame
from loraport.report.analysis_page import render_analysis_page, write_analysis_page
from loraport.report.check_page import render_check_page, write_check_page

EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def _text(page):
    return re.sub(r"<[^>]*>", " ", page)


def _opened(page):
    return [gzip.decompress(base64.b64decode(each)).decode() for each in re.findall(r'data-figures="([^"]+)"', page)]


def test_a_check_says_verdict_reasons_and_figures(tmp_path):
    page = write_check_page(tmp_path / "check.html", findings.check()).read_text(encoding="utf-8")
    text = _text(page)
    for said in (
        "noir.safetensors on fast", "use at strength 1.25", "Use it at 1.25.",
        "The drift is small (threshold small drift: 0.05).", "All layers meet.", "small drift: the bundled pairs",
        "6 layers, 5 of them in source and target", "regression (judged by weights): it looks so", "3 steps",
        "0.16 % (rounding of the stored numbers)", "6 of 40 layers were looked at", "What to run next", "odd.key",
        "2.5 MB", "LoRA of rank 4",
    ):  # fmt: skip
        assert said in text, said
    assert (
        page.index("Use it at 1.25")
        < page.index("What to run next")
        < page.index("Why")
        < page.index(">Inputs<")
        < page.index("Figures")
    )
    first = _text(_opened(page)[0])
    assert "blocks.0.self_attn.q beside chance" in first
    assert "one standard deviation of unrelated ones" in first


@pytest.mark.parametrize(("verdict", "tone"), [("use as is", "good"), ("convert", "caution"), ("cannot help", "bad")])
def test_the_verdict_has_words_and_a_colour(verdict, tone):
    page = render_check_page(findings.check(verdict=verdict, strength=None))
    assert f'<p class="verdict {tone}">{verdict}</p>' in page


def test_a_check_by_headers_alone_is_a_page_too():
    more = {"stage": "headers", "figures": (), "layers": (), "layers_of": 0, "coverage": None, "kind": None, "load": ()}
    page = render_check_page(findings.check(verdict="cannot help", strength=None, target=None, **more))
    assert "Layer by layer" not in page
    assert "cannot help" in page
    unmatched = {**more, "inputs": (), "source_title": "", "target_lora": ("fast.safetensors at strength 1",)}
    page = render_check_page(findings.check("<script>", verdict="cannot help", strength=None, **unmatched))
    for name in ("noir&lt;script&gt;.safetensors", "source", "fast/transformer", "fast.safetensors at strength 1"):
        assert f'<p class="file">{name}</p>' in page


def test_an_analysis_draws_the_model_and_each_layer(tmp_path):
    page = write_analysis_page(tmp_path / "pair.html", findings.pair(loras=2)).read_text(encoding="utf-8")
    text = _text(page)
    for said in (
        "What few-step changed in source", "The drift beside its null models", "Norms by depth",
        "Rigidity over its null",
        "Certified directions", "lora1: cosine to the drift", "lora0 and the drift", "a random update of the same norm",
    ):  # fmt: skip
        assert said in text, said
    opened = _opened(page)
    assert len(opened) == 20
    own = _text(opened[7])
    for said in (
        "Spectrum and clusters", "Energy against rank", "How far the drift turns directions",
        "before and after the drift: tail",
        "Certificates of the leading clusters", "lora0: what a cluster sends", "lora1: what a cluster receives",
        "Drift in the clusters of lora0", "lora1 from cluster to cluster", "Interaction strength", "Alignment",
        "lora1: restored", "lora0: arbitrated",
    ):  # fmt: skip
        assert said in own, said
    assert opened[7].count("<figure>") == opened[7].count("<figcaption>") == opened[7].count("aria-label")


def test_an_analysis_without_loras_or_layers():
    assert "Drift from cluster to cluster" in _text(_opened(render_analysis_page(findings.pair(1, loras=0)))[0])
    third = _opened(render_analysis_page(findings.pair(1, loras=3)))[0]
    assert third.count("after lora2") == third.count("after lora0") > 0  # none is left out where colours end
    assert "No layer was analysed" in render_analysis_page(findings.pair(0))


def test_an_analysis_of_equal_models_is_beside_no_random_change():
    pair, zero = findings.pair(1, loras=0), Measured(0.0, 0.0)
    equal = [replace(each, drift=replace(each.drift, relative=zero, rigidity=zero)) for each in pair.layers]
    text = _text(render_analysis_page(replace(pair, layers=tuple(equal))))
    assert "moved the weights by 0 % of their norm (mean over 10 layers)." in text
    assert "times what a random change" not in text


@pytest.mark.parametrize("render", [lambda: render_check_page(findings.check(EVIL)),
                                    lambda: render_analysis_page(findings.pair(1, evil=EVIL))])  # fmt: skip
def test_nothing_of_a_text_becomes_a_tag(render):
    page = render()
    for html in (page, *_opened(page)):
        assert "<img" not in html
        assert html.count("<script>") == (html is page)


def test_figures_that_do_not_fit_are_left_out_and_that_is_said(monkeypatch):
    whole = render_analysis_page(findings.pair(1))
    monkeypatch.setattr(frame, "BUDGET", 40_000)
    page = render_analysis_page(findings.pair(1))
    assert sum(len(each) for each in re.findall(r'data-figures="([^"]+)"', page)) <= 40_000
    left = int(re.search(r"the last (\d+) figures of each layer are left out", page)[1])
    assert all(
        few.count("<figure>") == all_of.count("<figure>") - left
        for few, all_of in zip(_opened(page), _opened(whole), strict=True)
    )


@pytest.mark.slow
def test_a_model_of_400_layers_makes_five_megabytes_at_most():
    page = render_analysis_page(findings.pair(40, full=True))
    assert len(page.encode()) < 5_000_000
    assert len(_opened(page)) == 400
