"""The page: well-formed, self-contained, escaped, and right about what it is given."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from loraport.errors import FileError
from loraport.report import Comparison, Curve, Measure, Row, Score, Words, read_run, render_page, write_page

VOID = {"br", "hr", "img", "input", "meta", "link", "col"}


class Checker(HTMLParser):
    """Fails on tags that do not nest; collects ids of what a browser would fetch, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        style = dict(attrs).get("style") or ""
        self.fetched += [part.split(")")[0] for part in style.split("url(")[1:]]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text.append(data)


def _check(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert all(url.startswith("data:") for url in checker.fetched), checker.fetched
    assert "http" not in page
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
    "summary": {"method": "casa", "layers": 2, "rank_in": 2, "rank_out": 4, "energy_kept_total": 0.875},
    "warnings": [],
    "passthrough": ["a.diff_b"],
    "dropped": [],
    "layers": [_layer("blocks.0.self_attn.q"), _layer("blocks.1.ffn.0", own_measure=7)],
}


def _comparison(label="first & <b>best</b>"):
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 255, (3, 4, 6, 6, 3), dtype=np.uint8)
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
    assert "2 layers by casa, rank 2 to 4" in text
    assert "blocks.1.ffn.0" in text
    assert "own measure" in text
    assert "87.5 %" in text


def test_a_page_with_pictures_is_self_contained():
    words = Words("Title", "Lead.", ("remark one",), "legend", "run me")
    checker = _check(render_page(REPORT, comparison=_comparison(), words=words))
    text = " ".join(checker.text)
    assert len([url for url in checker.fetched if url.startswith("data:image/png;base64,")]) == 1
    for expected in ("Title", "Lead.", "remark one", "legend", "run me", "−0.010 ± 0.004", "numbers only", "dial"):
        assert expected in text
    assert checker.tags.count("polyline") == 2


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


@pytest.mark.parametrize("report", [{}, {"layers": []}, {"layers": [], "summary": {}, "error": "it broke"}])
def test_little_makes_a_page_too(report):
    _check(render_page(report))
    assert ("it broke" in render_page(report)) == ("error" in report)


def test_large_models_stay_readable():
    names = ("self_attn.q", "self_attn.k", "ffn.0", "ffn.2")
    layers = [_layer(f"blocks.{block}.{name}") for block in range(40) for name in names]
    page = render_page({**REPORT, "layers": layers})
    _check(page)
    assert len(page) < 400_000


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
