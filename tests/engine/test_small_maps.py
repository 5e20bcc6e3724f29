"""Maps as they travel: a byte a number, read back or refused."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loraport.engine.small_maps import SmallMap, packed_maps
from loraport.methods.maps import MapValues

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
TOLD = {"rows": 1, "columns": 2, "of": [1, 40], "low": 0.0, "high": 1.0, "levels": "AP8="}


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1, max_size=6)))
@example([[0.0], [2.2250738585072014e-308]])  # 255 divided by it is infinite
def test_numbers_come_back_to_within_half_a_step(rows):
    given_ = MapValues.of_rows(rows, (len(rows), 16 * len(rows[0])))
    small = packed_maps({"map": given_})["map"]
    again = SmallMap.read_all(json.loads(json.dumps({"map": small.to_json()}, allow_nan=False)))["map"]
    assert again == small
    numbers = [value for row in rows for value in row]
    step = (max(numbers) - min(numbers)) / 255
    room = 0.5 * step + 5.1e-5 * max(map(abs, numbers))  # the ends are kept with five digits
    found = small.values()
    assert [len(row) for row in found] == [len(row) for row in rows]
    assert all(abs(a - b) <= room for x, y in zip(found, rows, strict=True) for a, b in zip(x, y, strict=True))


def test_what_is_no_number_has_no_map():
    assert packed_maps({"a": MapValues(((1.0, float("nan")),), (1, 2)), "b": MapValues((), (1, 1))}) == {}


def test_rows_and_columns_know_what_they_stand_for():
    small = SmallMap.read(TOLD)
    assert small is not None
    assert small.first(0) == (0,)
    assert small.first(1) == (0, 20)
    assert small.values() == ((0.0, 1.0),)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 2}, {"columns": 0}, {"rows": -1, "columns": -2}, {"of": [1]}, {"of": [1, 1]}, {"of": "ab"},
        {"low": "x"}, {"high": float("inf")}, {"levels": "!!!!"}, {"levels": 7}, {"levels": None}, {"more": 1},
        {"rows": 1 << 20, "columns": 1 << 20, "of": [1 << 21, 1 << 21]}, {"rows": 1.0}, {"rows": "1"}, {"of": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_map_is_left_out(change):
    assert SmallMap.read_all({"sound": TOLD, "odd": TOLD | change}).keys() == {"sound"}


@pytest.mark.parametrize("told", [None, [], "text", 3, {"odd": None}, {"odd": []}, {"odd": "text"}])
def test_whatever_stands_there_is_read(told):
    assert SmallMap.read_all(told) == {}
