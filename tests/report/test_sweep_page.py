"""The page of a sweep: a row for each cell, settings beside each other, links to pages that are there."""

import json
import re

import pytest

from loraport.errors import FileError
from loraport.report.sweep_page import read_sweep, render_sweep_page, write_sweep_page
from loraport.sweeping.figures import FIGURES
from opened_pages import Checker

EVIL = "<script>document.title = 'owned'</script>\"'><img src=x>"
COLUMNS = [{"key": each.key, "title": each.title, "help": each.help, "unit": each.unit} for each in FIGURES]


def cell(lora, target="fast", label="rank=16", settings=None, **more):
    settings = {"rank": 16} if settings is None else settings
    name = "/".join(part for part in (target, label, lora) if part)
    figures = {"layers": 1200, "rank_out": 16, "energy_kept": 0.75, "change": 0.25}
    row = {"name": name, "lora": f"/loras/{lora}.pt", "target": target, "settings": settings, "bytes": 2_500_000}
    return row | {"state": "done", "seconds": 1.5, "figures": figures} | more


def read(tmp_path, *cells, **more):
    index = tmp_path / "swept" / "sweep.json"
    index.parent.mkdir(exist_ok=True)
    index.write_text(json.dumps({"schema": 1, "columns": COLUMNS, "cells": cells} | more), encoding="utf-8")
    return read_sweep(index)


def opened(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert checker.tags.count("script") == 1
    return checker


def table_of(page):
    """The cells of the table as printed, by the titles of its columns."""
    heads = [re.sub("<[^>]*>", "", each) for each in re.findall(r"<th [^>]*>(.*?)</th>", page)]
    rows = re.findall(r"<tr>(<td.*?)</tr>", page)
    found = [[re.sub("<[^>]*>", "", each) for each in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]
    return [dict(zip(heads, row, strict=True)) for row in found]


def bars_of(page):
    """The labels and values of each chart, by its title."""
    found = {}
    for title, drawing in re.findall(r'<figure><h3>(.*?)</h3><div class="bars">(.*?)<figcaption>', page, re.DOTALL):
        found[title] = re.findall(r'<div class="\w+"><span>(.*?)</span>.*?<span>([^<]*)</span></div>', drawing)
    return found


def test_a_row_says_what_was_tried_and_what_came_of_it(tmp_path):
    failed = {"message": "long", "what": "no layers\n  in common", "where": "blocks", "values": None, "fix": "try it"}
    cells = (
        cell("style", warnings=["mind the <gap>"]),
        cell("deep/style", label="rank=32", settings={"rank": 32, "on": True}),
        cell("bad", state="failed", error=failed, figures={}, seconds=None, bytes=None),
        cell("next", state="pending", figures={}, seconds=None, bytes=None),
    )
    sweep = read(tmp_path, *cells, grid={"source": "base.safetensors", "rank": [16, 32]})
    page = write_sweep_page(tmp_path / "index.html", sweep, {"fast/rank=16/style.html"}).read_text("utf-8")
    checker = opened(page)
    done, deep, bad, pending = table_of(page)
    told = {
        "LoRA": "style",
        "target": "fast",
        "rank set": "16",
        "rank": "16",
        "layers": "1,200",
        "kept": "75.0 %",
    }
    assert told.items() <= done.items()
    assert (done["state"], done["why"], done["MB"], done["seconds"], done["warnings"]) == (
        "done",
        "–",
        "2.5",
        "1.5",
        "1",
    )
    assert (deep["LoRA"], deep["rank set"], deep["on"]) == ("deep/style", "32", "yes")
    assert (bad["state"], bad["why"], bad["kept"]) == ("failed", "no layers in common; blocks", "–")
    assert (pending["LoRA"], pending["state"]) == ("next", "pending")
    assert checker.fetched == ["fast/rank%3D16/style.html"]
    text = " ".join(checker.text)
    for said in (
        "4 LoRAs on 1 target: 4 cells, 2 done, 1 failed, 1 pending.", "1 of 4 failed", "1 cell is pending",
        "mind the <gap> (1 cell)", "no layers in common; blocks (1 cell)", FIGURES[3].help, "base.safetensors",
    ):  # fmt: skip
        assert said in text, said
    assert "<h1>swept</h1>" in page
    assert "cosine" not in done


def test_charts_compare_only_what_all_have(tmp_path):
    def kept(lora, rank, share, **more):
        more = {"figures": {"energy_kept": share}} | more
        return cell(lora, label=f"casa,rank={rank}", settings={"rank": rank}, **more)

    cells = [kept("a", 16, 0.5), kept("b", 16, 0.7), kept("c", 16, 0.1), kept("a", 32, 0.6), kept("b", 32, 0.9)]
    page = render_sweep_page(read(tmp_path, *cells, kept("c", 32, 0.9, state="failed")))
    assert bars_of(page) == {"Share kept by the rank: fast": [("casa, rank=16", "60 %"), ("casa, rank=32", "75 %")]}
    assert "means over the 2 LoRAs" in page
    assert bars_of(render_sweep_page(read(tmp_path, *cells[:3]))) == {}
    pair = [cell("a", target, "", {}) for target in ("fast", "turbo")]
    alone = bars_of(render_sweep_page(read(tmp_path, *pair)))
    assert alone == {
        "Share kept by the rank": [("fast", "75 %"), ("turbo", "75 %")],
        "Change by the method": [("fast", "0.25"), ("turbo", "0.25")],
    }


def test_a_thousand_cells_stay_readable(tmp_path):
    more = {"warnings": ["w" * 200], "error": {"what": "e" * 900}}
    cells = [
        cell("style" * 8, target, f"q={at}", {"q": at / 100}, figures={"energy_kept": at / 100}, **more)
        for target in ("fast", "turbo")
        for at in range(500)
    ]
    page = render_sweep_page(read(tmp_path, *cells), {f"{each['name']}.html" for each in cells})
    assert len(page.encode()) < 3_000_000
    assert len(table_of(page)) == len(opened(page).fetched) == 1000
    drawn = bars_of(page)
    assert {title: len(bars) for title, bars in drawn.items()} == {
        "Share kept by the rank: fast": 30,
        "Share kept by the rank: turbo": 30,
    }
    assert drawn["Share kept by the rank: fast"][0] == ("q=499", "499 %")
    assert "the 30 largest of 500" in page


def test_names_stay_names(tmp_path):
    evil = cell(EVIL, EVIL, EVIL, {EVIL: EVIL}, warnings=[EVIL])
    evil |= {"name": f"javascript:alert(1)//{EVIL}\udcff\u202e", "error": {"message": EVIL}}
    columns = [*COLUMNS, {"key": "k", "title": EVIL, "help": EVIL, "unit": "number"}]
    evil["figures"] |= {"k": 1}
    sweep = read(tmp_path, evil, evil | {"name": "", "settings": {}}, columns=columns, grid={EVIL: EVIL})
    page = render_sweep_page(sweep, {each.page for each in sweep.cells})
    assert "img" not in opened(page).tags
    assert "⟨U+202E⟩" in page
    links = opened(page).fetched
    assert links[0].startswith("javascript%3Aalert%281%29//%3Cscript%3E")
    assert not any(re.search("[<>\"':]", link) for link in links)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"cells": []}', '{"columns": [], "cells": [{"name": 3}]}', "[" * 100_000, "\x00"]
)
def test_what_is_no_index_is_said(tmp_path, text):
    index = tmp_path / "sweep.json"
    index.write_text(text)
    with pytest.raises(FileError, match="cannot be understood") as told:
        read_sweep(index)
    assert len(str(told.value)) < 1000
