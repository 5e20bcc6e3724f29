"""The page: well-formed, self-contained, escaped, and right about what it is given."""

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from loraport.errors import FileError
from loraport.report import Comparison, Curve, Measure, Row, Score, Words, read_run, render_page, write_page
from opened_pages import Checker, unpacked


def _check(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert all(url.startswith("data:") for url in checker.fetched), checker.fetched
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    return checker


def _layer(name, **stats):
    return {
        "name": name,
        "shape": [8, 4],
        "method": "casa",
        "rank_in": 2,
        "rank_out": 4,
        "energy_kept": 0.875,
        "stats": {"cosine": 0.5, "drift_undone": 0.25, "exact_norm": 3.0, **stats},
        "seconds": 0.1,
        "cached": False,
    }


REPORT = {
    "output": "/tmp/out.safetensors",
    "inputs": [
        {
            "role": "LoRA",
            "file": "style.safetensors",
            "title": "Wan",
            "kind": "LoRA of rank 2 in 2 layers",
            "bytes": 1500,
            "digest": "ab" * 32,
            "strength": 0.5,
        }
    ],
    "summary": {"method": "casa", "layers": 2, "rank_in": 2, "rank_out": 4, "energy_kept_total": 0.875},
    "warnings": [],
    "passthrough": ["a.diff_b"],
    "dropped": [],
    "layers": [_layer("blocks.0.self_attn.q"), _layer("blocks.1.ffn.0", own_measure=7)],
}


def _comparison(label="first & <b>best</b>", size=6):
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 255, (3, 4, size, size, 3), dtype=np.uint8)
    measure = Measure("m", "a measure", "its meaning", "lower", high=0.4, digits=3)
    score = Score(-0.01, 0.004)
    rows = (Row("a", label, "a note", clips, {"m": score}, "reference"), Row("b", "numbers only", scores={"m": score}))
    curve = Curve("a line", ((0.5, Score(0.2, 0.01)), (1.0, Score(0.1, 0.01))), "result")
    captions = (("one", "1"), ("two", "2"), ("three", "3"))
    return Comparison(captions, rows, (measure,), 48, "a title", (curve, curve), measure, "dial")


def test_an_ordinary_report_makes_a_page():
    checker = _check(render_page(REPORT))
    text = " ".join(checker.text)
    assert "out.safetensors" in text
    assert "2 layers, method casa, rank 2 to 4" in text
    assert "blocks.1.ffn.0" in text
    assert "own measure" in text
    assert "87.5 %" in text
    assert "Wan · LoRA of rank 2 in 2 layers · 1.5 kB · strength 0.5" in text
    assert "ab" * 32 in text


def test_the_page_says_how_to_use_the_result():
    load = [
        'diffusers: pipe.load_lora_weights("x")',
        "ComfyUI: put x into models/loras",
        "together with few: as it says",
    ]
    checker = _check(render_page({**REPORT, "load": load}))
    text = " ".join(checker.text)
    assert 'pipe.load_lora_weights("x")' in checker.text
    assert "put x into models/loras" in text
    assert load[2] in checker.text
    assert "Use the steps, shift and guidance of the target" in text
    told = {**REPORT["summary"], "target_usage": "steps 4, guidance_scale 1 (its header)"}
    assert "steps 4, guidance_scale 1" in render_page({**REPORT, "load": load, "summary": told})


def test_every_drawing_is_told_in_words():
    page = render_page(REPORT)
    assert page.count("<svg") == page.count('role="img" aria-label=') > 0
    assert "Map of 2 by 2, module by block" in page


def test_a_page_allows_its_own_script_and_nothing_else():
    page = render_page(REPORT)
    policy = page.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"<[^>]* on[a-z]+=", page)


def test_rows_hold_their_own_figures():
    layers = [_layer("blocks.0.a", drift_undone=0.1), _layer("blocks.1.<b>", drift_undone=0.9)]
    first, second = unpacked(render_page({**REPORT, "layers": layers}))
    assert "<span>0.1</span>" in first
    assert "<span>0.9</span>" in second
    assert "blocks.1.&lt;b&gt; among all layers" in second
    assert "from block to block" not in first  # it has no neighbours
    assert "<b>among" not in second
    Checker().feed(second)


def test_a_page_with_pictures_is_self_contained():
    words = Words("Title", "Lead.", ("remark one",), "legend", "run me")
    checker = _check(render_page(REPORT, comparison=_comparison(), words=words))
    text = " ".join(checker.text)
    assert len([url for url in checker.fetched if url.startswith("data:image/png;base64,")]) == 1
    for expected in ("Title", "Lead.", "remark one", "legend", "run me", "−0.010 ± 0.004", "numbers only", "dial"):
        assert expected in text
    assert checker.tags.count("polyline") == 2


def test_clips_are_not_cut_as_texts_are():
    checker = _check(render_page(REPORT, comparison=_comparison(size=40)))
    (url,) = [url for url in checker.fetched if url.startswith("data:image/png;base64,")]
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    picture.load()
    assert picture.size == (3 * 41 - 1, 4 * 40)


def test_names_are_escaped_everywhere():
    evil = '<script>alert("x")</script>'
    report = {
        **REPORT,
        "output": f"/tmp/{evil}.safetensors",
        "warnings": [evil],
        "summary": {**REPORT["summary"], "lora": evil, evil: evil},
        "layers": [_layer(f"blocks.0.{evil}", **{evil: evil})],
    }
    words = Words(remarks=(evil,), legend=evil, commands=evil)
    page = render_page(report, comparison=_comparison(evil), words=words)
    checker = _check(page)
    assert checker.tags.count("script") == 1
    assert "alert" not in page.replace("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;", "")


def test_an_attribute_cannot_be_left():
    page = render_page(REPORT, comparison=_comparison('" onload="x'))
    assert '" onload="x"' not in page
    _check(page)


def test_what_cannot_be_seen_is_shown_by_its_number():
    page = render_page(
        {**REPORT, "warnings": ["safe\u202egnp.exe", "half \ud800", "bell \a", "x" * 10**6, "ünï\n\tcode"]}
    )
    assert "\u202e" not in page
    assert "safe⟨U+202E⟩gnp.exe" in page
    assert "half ⟨U+D800⟩" in page
    assert "bell ⟨U+0007⟩" in page
    assert "(1,000,000 characters)" in page
    assert "ünï\n\tcode" in page
    assert len(page) < 60_000


@pytest.mark.parametrize("report", [{}, {"layers": []}, {"layers": [], "summary": {}, "error": "it broke"}])
def test_little_makes_a_page_too(report):
    _check(render_page(report))
    assert ("it broke" in render_page(report)) == ("error" in report)


def test_large_models_stay_readable():
    names = ("self_attn.q", "self_attn.k", "ffn.0", "ffn.2")
    layers = [
        _layer(f"blocks.{block}.{name}", cosine=block / 40, update_rel=block / 99)
        for block in range(40)
        for name in names
    ]
    page = render_page({**REPORT, "layers": layers})
    _check(page)
    assert len(unpacked(page)) == 160
    assert "ffn.2 from block to block" in unpacked(page)[-1]
    assert len(page) < 500_000


def test_write_and_read_back_a_run_log(tmp_path):
    log = tmp_path / "run.jsonl"
    lines = [{"event": "layer", **layer} for layer in REPORT["layers"]]
    lines.append({"event": "finished", **{k: v for k, v in REPORT.items() if k != "layers"}})
    log.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    assert read_run(log) == REPORT
    page = write_page(tmp_path / "deep" / "page.html", read_run(log))
    assert page.read_text(encoding="utf-8") == render_page(REPORT)


def test_a_log_that_was_cut_short_still_reads(tmp_path):
    log = tmp_path / "run.jsonl"
    log.write_text(json.dumps({"event": "layer", **REPORT["layers"][0]}) + '\n{"event": "lay')
    report = read_run(log)
    assert len(report["layers"]) == 1
    assert "not finished" in render_page(report)


@pytest.mark.parametrize("content", ["junk\nmore junk\n", "[1]\n"])
def test_other_files_are_not_run_logs(tmp_path, content):
    (tmp_path / "x").write_text(content)
    with pytest.raises(FileError, match="run log"):
        read_run(tmp_path / "x")
    with pytest.raises(FileError, match="cannot be read"):
        read_run(tmp_path / "missing")


def test_a_calibration_says_what_was_tried():
    candidates = [
        {"label": f"{method} x {at}", "method": method, "strength": at, "gap": gap, "error": 0.01, "latents": gap,
         "share_in_clips": 0.5}
        for method, at, gap in (("casa", 1.0, 0.2), ("direct", 1.0, 0.4), ("direct", 1.5, 0.3))
    ]  # fmt: skip
    shown = {"where": "t = 1", "share": 0.5, "ratio": 0.6, "cosine": 0.8}
    effect = {"clips": shown, "steps": [shown, {**shown, "where": "t = 0.5"}], "whole": shown}
    told = {
        "source": "s", "target": "t", "settings": {}, "chosen": candidates[0], "reason": "it is <nearest>",
        "measure": "a distance", "ranking": candidates, "passes": {"source": 3}, "seconds": {"all": 2.0}, "found": 0,
        "diagnosis": {"sentence": "Half of it arrives.", "guidance": 1.0, "before": effect, "after": effect},
        "warnings": ["mind the gap"],
    }  # fmt: skip
    checker = _check(render_page({**REPORT, "calibration": told}))
    text = " ".join(checker.text)
    for expected in (
        "Half of it arrives.",
        "casa x 1.0 was chosen: it is <nearest>",
        "mind the gap",
        "Gap of each candidate",
        "step by step",
    ):
        assert expected in text
    assert text.index("Gap of each candidate") < text.index("Energy kept")
    assert checker.tags.count("polyline") == 2 + 2 * 2  # two methods; share and direction of two sides


@pytest.mark.parametrize("change", [{"warnings": ["</script>"]}, {"output": "javascript:alert(1)"}])
def test_a_text_of_a_file_stays_a_text(change):
    page = render_page({**REPORT, **change})
    assert page.count("</script>") == 1
    assert "href" not in page
