"""An analysis with one number in every place."""

import dataclasses
import types
import typing

import pytest

from loraport.analysis import results
from loraport.analysis.results import PairAnalysis


def _example(kind: object) -> object:
    """A value of a type, the simplest that has something in it."""
    simple = {int: 1, float: 0.5, str: "name", bool: True}
    if kind in simple:
        return simple[kind]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, vars(results))
        return kind(**{field.name: _example(hints[field.name]) for field in dataclasses.fields(kind)})
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_example(part) for part in parts if part is not Ellipsis)
    if origin is dict:
        return {_example(parts[0]): _example(parts[1])}
    if origin is typing.Literal:
        return parts[0]
    assert origin in (types.UnionType, typing.Union), kind
    return _example(parts[0])


@pytest.fixture
def sample_analysis() -> PairAnalysis:
    """One layer, one LoRA."""
    made = _example(PairAnalysis)
    layer = dataclasses.replace(made.layers[0], name="blocks.0.self_attn.q", kind="self_attn.q", block=0)
    return dataclasses.replace(made, layers=(layer,))
