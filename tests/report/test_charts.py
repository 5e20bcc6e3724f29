"""Drawings: where things lie, what is said of them in words, and what little or broken numbers make of them."""

import itertools
import math
import re

import pytest

from loraport.report.charts import Bar, Bars, Box, Lines, Map, Series, number, spread_of


def _lines(points, **more):
    return Lines((Series("one", tuple(points), "a"),), "x", "y", **more)


def test_lines_lie_where_their_numbers_say():
    field = _lines([(0.0, 0.0), (1.0, 5.0), (2.0, 10.0)]).layout()
    (path,) = field.paths
    (x0, y0), (x1, y1), (x2, y2) = path.dots
    assert (x0, x2) == (round(field.left, 1), field.right)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y0 == field.bottom
    assert y1 - y2 == pytest.approx(y0 - y1, abs=0.11)
    assert field.top < y2 < y1 < y0
    at = {tick.text: tick.at for tick in field.y_ticks}
    assert at["5"] == y1


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors():
    field = _lines([(0.0, 1.0), (1.0, 10.0), (2.0, 100.0), (3.0, 0.0)], log=True).layout()
    (_, a), (_, b), (_, c) = field.paths[0].dots  # zero has no place there
    assert a - b == pytest.approx(b - c, abs=0.11)


def test_bands_hold_the_errors():
    line = Lines((Series("one", ((0.0, 1.0), (1.0, 2.0)), errors=(0.5, 0.5)),), "x", "y")
    path = line.layout().paths[0]
    corners = [tuple(map(float, corner.split(","))) for corner in path.band.split()]
    assert len(corners) == 4
    assert corners[0][1] < path.dots[0][1] < corners[3][1]


def test_curves_of_one_kind_are_told_apart():
    twice = Lines((Series("one", ((0.0, 1.0),), "b"), Series("two", ((0.0, 2.0),), "b")), "x", "y")
    assert [path.nth for path in twice.layout().paths] == [0, 1]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points",
    [[], [(0.0, math.nan)], [(0.0, 0.0)], [(1.0, 1.0)], [(0.0, -1.0), (1.0, 1.0)], [(0.0, 1e-30), (1.0, 1e30)]],
)
def test_little_is_drawn_too(points, log):
    drawing = _lines(points, log=log)
    field = drawing.layout()
    assert all(math.isfinite(at) for path in field.paths for dot in path.dots for at in dot)
    assert "nan" not in drawing.alt()


def test_ticks_do_not_run_into_each_other():
    field = _lines([(float(at), 1.0) for at in range(400)]).layout()
    assert 2 <= len(field.x_ticks) <= 8
    many = Map(((1.0,) * 40,), "block", "module", tuple(map(str, range(40)))).layout()
    places = [tick.at for tick in many.x_ticks]
    assert min(b - a for a, b in itertools.pairwise(places)) > 12


def _cells(drawing):
    """Shade by (row, column), from the paths."""
    found = {}
    for shade, path in drawing.layout().shades:
        for x, y, run in re.findall(r"M(\d+) (\d+)h(\d+)", path):
            for at in range(int(run)):
                assert (int(y), int(x) + at) not in found
                found[int(y), int(x) + at] = shade
    return found


def test_a_map_shades_every_cell_above_the_least_once():
    values = ((0.0, 0.5, 0.5, 1.0), (1.0, None, math.nan, 0.0))
    cells = _cells(Map(values, "x", "y"))
    assert cells == {(0, 1): "q3", (0, 2): "q3", (0, 3): "q6", (1, 0): "q6"}


def test_a_diverging_map_has_zero_in_the_middle():
    cells = _cells(Map(((-2.0, 0.0, 1.4),), "x", "y", diverging=True))
    assert cells == {(0, 0): "m3", (0, 2): "p2"}


def test_a_map_that_is_too_large_is_averaged():
    drawing = Map(tuple(tuple(float(r) for _ in range(130)) for r in range(60, 190)), "x", "y", low=0.0)
    layout = drawing.layout()
    assert layout.rows == layout.columns == 44
    assert len(_cells(drawing)) == 44 * 44


@pytest.mark.parametrize("values", [(), ((),), ((None,),), ((math.inf,),)])
def test_empty_maps(values):
    drawing = Map(values, "x", "y")
    drawing.layout()
    assert drawing.alt().endswith("empty")


@pytest.mark.parametrize(
    ("value", "settings", "says"),
    [
        (0.0, {"low": 0.0}, "nothing here"),
        (0.0, {"diverging": True}, "nothing here"),
        (0.5, {}, "0.5 everywhere"),
        (0.5, {"low": 0.0}, ""),
        (0.0, {"low": 0.0, "high": 1.0}, ""),
    ],
)
def test_a_scale_without_a_length_is_none(value, settings, says):
    drawing = Map(((value, value, None),), "x", "y", **settings)
    layout = drawing.layout()
    assert (layout.key == ()) == bool(says)
    assert layout.low == says if says else layout.low < layout.top_end
    assert (layout.top_end == "") == bool(says)
    assert (says or "from") in drawing.alt()


def test_words_name_the_ends_of_a_map():
    drawing = Map(((0.1, 0.9), (0.5, 0.2)), "block", "module", ("0", "1"), ("q", "k"), unit="share")
    assert (
        drawing.alt() == "Map of 2 by 2, module by block: from 10 % at module q, block 0 to 90 % at module q, block 1"
    )


def test_bars_are_held_against_their_nulls():
    rows = Bars((Bar("a", 2.0, {"chance": 1.0}), Bar("b", 4.0))).layout()
    assert [row["length"] for row in rows] == [50.0, 100.0]
    assert [row["marks"] for row in rows] == [[{"at": 25.0, "nth": 0}], []]
    own = Bars(
        (Bar("a", 2.0, {"one": 4.0, "two": 1.0}), Bar("b", -4.0, {"two": 2.0, "one": math.nan}), Bar("c", 3.0)),
        each=True,
    )
    assert own.names == ["one", "two"]
    assert [row["length"] for row in own.layout()] == [50.0, 100.0, None]  # nothing to hold the last against
    assert [row["marks"] for row in own.layout()][1] == [{"at": 50.0, "nth": 1}]
    assert Bars((Bar("d", math.inf, {"one": 1.0}),)).layout()[0]["length"] == 0


def test_places():
    spread = spread_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spread == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert Box("x", 4.5, "4.5", spread).across() == (25.0, 50.0, 75.0, 87.5)
    assert Box("x", 1.0, "1", (1.0,) * 5).across() == (50.0,) * 4


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0, "number", "0"), (-0.25, "number", "−0.25"), (3.5e-4, "number", "3.5e−4"), (12345.0, "number", "12345"),
     (2e6, "number", "2e6"), (0.5, "share", "50 %"), (math.nan, "share", "–"), (None, "number", "–")],
)  # fmt: skip
def test_numbers(value, unit, text):
    assert number(value, unit) == text
