"""Patterns of a PEFT configuration: what PEFT's own matcher says, and no pattern that runs for ever."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraport.adapters.pattern import MOST_PATTERNS, Patterns
from loraport.errors import UnsupportedError

MODULES = [
    "blocks.0.self_attn.q",
    "blocks.10.self_attn.q",
    "diffusion_model.blocks.1.ffn.2",
    "blocks.1.attn1.to_out.0",
    "q",
    "to_q",
    "head",
]


def _peft(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _found(pattern: str, module: str) -> bool:
    return Patterns({pattern: 1.0}, "here").find([module]) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "q", "self_attn.q", r"self_attn\.q", "^blocks.0.self_attn.q", "^self_attn.q", "to.q", "", "^", "blocks",
        r"blocks\.\d+\.self_attn\.(q|k)", r"blocks\.(0|1\d?)\..*", ".*", ".+q", "(?:blocks.[0-9]{1,2}.)?self_attn.q",
        r"[^.]+", r"to_out\.0|ffn.2", "q|head)|(nothing", "q$", "^^q", "(q)?", "(a*)*q", "(|q)", r"blocks.1{2,}.*",
        "q{0}", "(.*q.*){1,3}", "[]q]", "[^]]", r"\w+", r"ffn\.2$|x", "diffusion_model.*2", "to_q??", "h.{1,}d",
        "x{,2}q", "a{b",
    ],
)  # fmt: skip
def test_the_same_answer_as_peft(pattern):
    for module in MODULES:
        assert _found(pattern, module) == _peft(pattern, module), (pattern, module)


TEXT = st.text("ab.", max_size=6)
ATOM = st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a]", r"\w", "(a|b)", "(ab)?", "(a*)", "^", "$", "(|b)"])
PIECE = st.tuples(ATOM, st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,2}", "*?"])).map("".join)
PATTERN = st.lists(st.lists(PIECE, max_size=4).map("".join), min_size=1, max_size=2).map("|".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy
@given(pattern=PATTERN, module=TEXT)
def test_any_small_pattern(pattern, module):
    try:
        found = _found(pattern, module)
    except UnsupportedError:
        return
    assert found == _peft(pattern, module)


@pytest.mark.parametrize(
    "pattern",
    [
        ".*" * 20 + "z", "((a+)+)+z", "(.*a){20}z", "(" * 40 + "a*" + ")*" * 40 + "z", "(.?){50}(q){3}z",
        "(a|a)*" * 20 + "z", "((((){9999}){9999}){9999}){9999}z",
    ],
)  # fmt: skip
def test_hostile_patterns_are_answered(pattern):
    assert not _found(pattern, "a." * 40)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(q)\1", "(?=q)q", "(?i)q", "(?P<x>q)", "(", "*", "a**", "[z-a]", r"\b", "(q){9999}{9999}", "(" * 60,
        "((q{99}){99}){99}",
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_name_with_a_way_out(pattern):
    with pytest.raises(UnsupportedError, match="--scale") as caught:
        _found(pattern, "blocks.0.q")
    assert repr(pattern[:20])[1:-1].replace("\\\\", "\\")[:10] in caught.value.message.replace("\\\\", "\\")


def test_the_first_of_several_counts_and_any_spelling_may_match():
    patterns = Patterns({"k": 1.0, "^wrapped.q": 2.0, "q": 3.0}, "here")
    assert patterns.find(["q"]) == 3.0
    assert patterns.find(["q", "wrapped.q"]) == 2.0
    assert patterns.find(["v"]) is None


def test_too_many():
    with pytest.raises(UnsupportedError, match="patterns"):
        Patterns({f"x{n}": 1.0 for n in range(MOST_PATTERNS + 1)}, "here").find(["q"])
    with pytest.raises(UnsupportedError, match="too large"):
        Patterns({f"(x{n}){{400}}": 1.0 for n in range(60)}, "here").find(["q"])
