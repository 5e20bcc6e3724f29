"""The page in a real browser: it is drawn, sorts, opens rows, fits a phone, and nothing from a file runs in it."""

import json

import pytest

import findings
from browser import browsing
from loraport.engine.small_maps import packed_maps
from loraport.methods.casa.method import Casa
from loraport.methods.maps import LayerMap, MapValues
from loraport.report import Words, render_page
from loraport.report.analysis_page import render_analysis_page
from loraport.report.check_page import render_check_page
from loraport.report.sweep_page import read_sweep, write_sweep_page

EVIL = "<script>document.title = 'owned'</script>\"'><img src=x onerror=\"document.title='owned'\"></script></style>"
NAMES = [f"blocks.{block}.{name}" for block in (2, 10) for name in ("self_attn.q", "ffn.0", "ffn.2")]


def _layer(at: int, name: str) -> dict:
    stats = {"update_rel": 0.01 * (at + 1), "drift_rel": 0.02, "cosine": [0.5, -0.5, 0.25][at % 3], "exact_norm": 1.0}
    stats |= {"driver": EVIL} if at == 0 else {}
    place = {"name": name, "shape": [8, 4], "method": "casa", "rank_in": 2, "rank_out": 4, "energy_kept": 0.9}
    values = MapValues.of_rows([[0.1 * at * (r + c) for c in range(16)] for r in range(16)], (100, 1536))
    small = packed_maps({"drift": values, EVIL: values})
    return place | {"stats": stats, "seconds": 0.1, "cached": False, "maps": {k: m.to_json() for k, m in small.items()}}


def _hostile() -> dict:
    names = [*NAMES, f"blocks.0.{EVIL}", "blocks.1." + "x" * 3000]
    role = {"role": "LoRA", "title": EVIL, "kind": "LoRA", "bytes": 1, "digest": "ab" * 32, "strength": 1.0}
    return {
        "output": f"/tmp/{EVIL}\u202e.safetensors",
        "summary": {"method": "casa", "training": {"comment": EVIL, "trigger": "javascript:alert(1)"}},
        "inputs": [{**role, "file": "long" * 2000}],
        "warnings": [EVIL, "javascript:document.title='owned'"],
        "load": ["ComfyUI: " + "y" * 2000],
        "dropped": [EVIL],
        "maps": [*(each.to_json() for each in Casa.maps), LayerMap(EVIL, EVIL, EVIL, EVIL, EVIL).to_json()],
        "layers": [_layer(at, name) for at, name in enumerate(names)],
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_page(_hostile(), words=Words(commands="z" * 5000)), encoding="utf-8")
    return path


OPENED = """new Promise((done) => {{
  const look = () => (document.querySelector('.panel') ? done({}) : setTimeout(look, 20));
  look();
}})"""
COLUMN = "[...document.querySelectorAll('.layers tbody tr:not(.figures-of)')].map(row => row.cells[{}].innerText)"


def _sort(browser, title):
    heads = "[...document.querySelectorAll('.layers thead th')]"
    at = browser.run(f"{heads}.findIndex(head => head.innerText.trim().split(' ')[0] === {json.dumps(title)})")
    browser.run(f"{heads}[{at}].querySelector('button').click()")
    return browser.run(COLUMN.format(at)), browser.run(f"{heads}.map(head => head.getAttribute('aria-sort'))")[at]


def test_it_sorts(browser, page):
    browser.open(page)
    names, told = _sort(browser, "layer")
    assert told == "ascending"
    assert [name for name in names if name in NAMES] == [
        "blocks.2.ffn.0", "blocks.2.ffn.2", "blocks.2.self_attn.q",
        "blocks.10.ffn.0", "blocks.10.ffn.2", "blocks.10.self_attn.q",
    ]  # fmt: skip
    values, told = _sort(browser, "cosine")
    assert (values[0], values[-1], told) == ("−0.5", "0.5", "ascending")
    values, told = _sort(browser, "cosine")
    assert (values[0], values[-1], told) == ("0.5", "−0.5", "descending")
    values, _ = _sort(browser, "driver")
    assert values[1:] == ["–"] * 7  # what has none stays last
    assert browser.run("document.querySelectorAll('[aria-sort]:not([aria-sort=none])').length") == 1


def test_a_row_opens_its_own_figures(browser, page):
    browser.open(page)
    button = "document.querySelector('.layers tbody tr:nth-child({}) button')"
    browser.run(f"{button.format(7)}.focus()")
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    text = browser.run(OPENED.format("document.querySelector('.panel').innerText"))
    assert f"blocks.0.{EVIL} among all layers" in text
    assert "\nThe drift\n" in text
    assert browser.run("[...document.querySelectorAll('.panel svg')].every(each => each.ariaLabel.length > 20)")
    assert (
        browser.run("document.querySelectorAll('.panel svg[aria-label^=\"The drift. Map of 16 by 16\"]').length") == 1
    )
    assert browser.run("document.querySelectorAll('.panel img, .panel script').length") == 0
    _sort(browser, "update")
    _sort(browser, "update")
    follows = "document.querySelector('.figures-of').previousElementSibling.cells[0].innerText"
    assert EVIL in browser.run(follows)
    browser.run("document.querySelector('[aria-expanded=true]').click()")
    assert browser.run("document.querySelectorAll('.panel').length") == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_nothing_runs_is_loaded_or_runs_over(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert "owned" not in browser.run("document.title").split("/tmp/")[0]
    assert browser.run("document.querySelectorAll('script').length") == 1
    assert browser.run("document.images.length") == 0
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)"
    )
    browser.run("document.querySelector('.layers tbody button').click()")
    drawn = browser.run(OPENED.format("document.querySelectorAll('.panel figure').length"))
    assert drawn == 4  # its place, two maps, its line of blocks
    seen = "[...document.querySelectorAll('.panel figure')].every(each => each.getBoundingClientRect().right <= {})"
    assert browser.run(seen.format(width))
    assert "owned" not in browser.run("document.title").split("/tmp/")[0]
    assert browser.complaints() == []
    assert browser.fetched() == []


@pytest.mark.parametrize("kind", ["check", "analysis"])
def test_the_other_pages_are_drawn_too(browser, tmp_path, kind):
    page = tmp_path / "page.html"
    made = (
        render_check_page(findings.check(EVIL))
        if kind == "check"
        else render_analysis_page(findings.pair(1, evil=EVIL))
    )
    page.write_text(made, encoding="utf-8")
    for width in (1280, 390):
        browser.open(page, width=width)
        browser.run("document.querySelector('.layers tbody button').click()")
        drawn = browser.run(OPENED.format("document.querySelectorAll('.panel figure').length"))
        assert drawn == (2 if kind == "check" else 17)
        seen = "[...document.querySelectorAll('.panel figure')].every(each => each.getBoundingClientRect().right <= {})"
        assert browser.run(seen.format(width))
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("document.images.length + document.scripts.length") == 1
        assert _sort(browser, "drift")[1] == "ascending"
        assert browser.complaints() == []
        assert browser.fetched() == []


def test_the_page_of_a_sweep_sorts_links_and_fits(browser, tmp_path):
    row = {"lora": "a.pt", "state": "done", "warnings": [EVIL]}
    columns = [{"key": "energy_kept", "title": "kept", "help": EVIL, "unit": "share"}]
    cells = [
        row | {"target": target, "settings": {"rank": rank, "long": "y" * 3000}, "figures": {"energy_kept": rank / 40},
               "name": f"{target}/{rank}{'y' * 300}/{EVIL}"}
        for target in ("fast", EVIL) for rank in (4, 32, 16)
    ]  # fmt: skip
    cells.append(cells[0] | {"state": "failed", "error": {"message": EVIL * 9}, "name": "gone"})
    index = tmp_path / "sweep.json"
    index.write_text(json.dumps({"columns": columns, "cells": cells}))
    sweep = read_sweep(index)
    page = write_sweep_page(tmp_path / "index.html", sweep, {each.page for each in sweep.cells[:6]})
    for width in (1280, 390):
        browser.open(page, width=width)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert _sort(browser, "kept")[0] == ["10.0 %"] * 3 + ["40.0 %"] * 2 + ["80.0 %"] * 2
        assert [len(each) for each in browser.run(COLUMN.format(2))] == [1, 1, 1, 2, 2, 2, 2]
        assert browser.run("document.links.length") == 6
        assert browser.run("new URL(document.links[0].href).protocol") == "file:"
        assert browser.run("decodeURIComponent(document.links[0].href)").endswith(f"/{sweep.cells[0].page}")
        assert browser.run("document.images.length + document.scripts.length") == 1
        assert "owned" not in browser.run("document.title")
        assert browser.complaints() == []
        assert browser.fetched() == []


def test_a_script_that_found_its_way_in_would_not_run(browser, page, tmp_path):
    broken = tmp_path / "broken.html"
    script = "<script>document.title = 'owned'</script>"
    script += "<img src='https://example.org/x.png' onerror=\"document.title = 'owned'\">"
    broken.write_text(page.read_text("utf-8").replace("<main>", f"<main>{script}"), encoding="utf-8")
    browser.open(broken)
    assert browser.run("document.title") != "owned"
    assert len(browser.complaints()) >= 2
    assert _sort(browser, "layer")[1] == "ascending"
