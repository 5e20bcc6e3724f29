"""A layer's own maps on a page: drawn as they are declared, told in words, and never more than fit."""

import re

import numpy as np
import pytest

from loraport.engine.small_maps import packed_maps
from loraport.methods.casa.method import Casa
from loraport.methods.maps import LayerMap, MapValues
from loraport.report import frame, render_page
from opened_pages import Checker, unpacked

REPORT = {"output": "/tmp/out.safetensors", "summary": {"method": "casa"}, "warnings": []}


def _layer(name, **stats):
    place = {"name": name, "shape": [8, 4], "method": "casa", "rank_in": 2, "rank_out": 4, "energy_kept": 0.875}
    return {**place, "stats": {"cosine": 0.5, **stats}, "seconds": 0.1, "cached": False}


def _maps(high=2.5, title="The drift", side=4, columns=8):
    """A map and two lines, and what they show."""
    rows = [[high * (r * columns + c) / (side * columns - 1) for c in range(columns)] for r in range(side)]
    values = {"cells": MapValues.of_rows(rows, (side, 10 * columns)), "lines": MapValues.of_rows(rows[:2], (2, 80))}
    small = {key: each.to_json() for key, each in packed_maps(values).items()}
    shown = (
        LayerMap("cells", title, f"look at {title}.", "receivers", "senders", high=2.0),
        LayerMap("lines", f"{title} in lines", f"follow {title}.", "height", "place", lines=("one", "two"), level=1.0),
    )
    return small, [each.to_json() for each in shown]


def test_a_row_opens_the_maps_of_its_layer():
    maps, shown = _maps()
    other, _ = _maps(9.5)
    layers = [{**_layer("blocks.0.a"), "maps": maps}, {**_layer("blocks.0.b"), "maps": other}, _layer("blocks.0.c")]
    page = render_page({**REPORT, "layers": layers, "maps": shown})
    assert "1 of 3 layers have no maps of their own here" in page
    first, second = unpacked(page)[:2]
    assert (
        'aria-label="The drift. Map of 4 by 8, receivers by senders from: from 0 at receivers 1, senders from 1'
        in first
    )
    assert "to 2.5 at receivers 4, senders from 71" in first
    assert "<h3>The drift</h3>" in first
    assert "<figcaption>look at The drift.</figcaption>" in first
    assert 'aria-label="The drift in lines. height over place: one from 0 to' in first
    assert "to 9.5 at receivers 4" in second
    assert first.count("<figure>") == first.count("<figcaption>") == 2 + (first.count("among all layers") > 0)
    Checker().feed(first)


def test_what_a_map_claims_to_be_stays_a_text():
    evil = "</figcaption></svg><script>alert(1)</script>\"'"
    maps, shown = _maps(title=evil)
    shown[1]["lines"] = [evil, evil]
    layers = [{**_layer("blocks.0.a"), "maps": maps}]
    (opened,) = unpacked(render_page({**REPORT, "layers": layers, "maps": shown}))
    assert "<script" not in opened
    assert opened.count("<figure>") == 2
    checker = Checker()
    checker.feed(opened)
    assert not checker.open


@pytest.mark.parametrize(
    "maps", [None, [], {"cells": None}, {"cells": {"rows": 10**9}}, {"other": _maps()[0]["cells"]}]
)
def test_what_is_no_map_opens_none(maps):
    page = render_page({**REPORT, "layers": [{**_layer("blocks.0.a"), "maps": maps}], "maps": _maps()[1]})
    assert "No layer has maps of its own here" in page
    assert not unpacked(page)


def test_maps_of_a_newer_version_are_read_too():
    maps, shown = _maps()
    newer = [{**each, "shading": "new"} for each in shown]
    report = {**REPORT, "layers": [{**_layer("blocks.0.a"), "maps": maps}]}
    assert render_page({**report, "maps": newer}) == render_page({**report, "maps": shown})


@pytest.mark.parametrize("room", [30_000, 60_000, 100_000])
def test_figures_give_way_so_that_the_whole_page_stays_small(monkeypatch, room):
    maps, shown = _maps()
    layers = [{**_layer(f"blocks.{n}.a", cosine=n / 40), "maps": maps} for n in range(40)]
    report = {**REPORT, "layers": layers, "maps": shown}
    whole, bare = render_page(report), render_page({**REPORT, "layers": layers})
    monkeypatch.setattr(frame, "WHOLE", room)
    page = render_page(report)
    left = re.search(r"the last (\d+) figures of each layer are left out", page)
    assert len(page.encode()) <= max(room, len(bare))
    assert (left is None) == (page == whole)
    assert all(
        few.count("<figure>") == full.count("<figure>") - int(left[1])
        for few, full in zip(unpacked(page), unpacked(whole), strict=False)
        if left is not None
    )


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [40, 150])
def test_a_large_model_with_maps_makes_five_megabytes_at_most(blocks):
    """Maps of noise, which no packing makes smaller: 14B, and a model of 1500 layers."""
    rng = np.random.default_rng(0)
    names = [f"{kind}.{name}" for kind in ("self_attn", "cross_attn") for name in "qkvo"] + ["ffn.0", "ffn.2"]

    def noise():
        sizes = {each.key: (2 if each.lines else 16, 16) for each in Casa.maps}
        return packed_maps({k: MapValues.of_rows(rng.random(size).tolist(), (16, 5120)) for k, size in sizes.items()})

    def layer(name):
        stats = {"update_rel": rng.random(), "drift_rel": rng.random(), "cosine": rng.random()}
        return {**_layer(name, **stats), "maps": {key: each.to_json() for key, each in noise().items()}}

    layers = [layer(f"blocks.{block}.{name}") for block in range(blocks) for name in names]
    page = render_page({**REPORT, "layers": layers, "maps": [each.to_json() for each in Casa.maps]})
    assert len(page.encode()) < 5_000_000
    assert len(unpacked(page)) == len(layers)
    assert ("figures of each layer are left out" in page) == (blocks > 40)
