"""The suite's own check of shapes: what was right once does not let pass what is wrong afterwards."""

import importlib
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

import shape_checks

MODULE = """
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

made = []


def twice(a: Float[Tensor, "m n"], b: Float[Tensor, "n"] | None = None) -> Float[Tensor, "m n"]:
    return made.pop() if made else 2 * a


def rows(a: Float[Tensor, "_ _"], count: int) -> Float[Tensor, "{count} _"]:
    return a[:3]


def side(a: Float[Tensor, "_"], which: Literal["left", "right"]) -> float:
    return 0.0


def pair(both: tuple[Float[Tensor, "n"], Float[Tensor, "n"]]) -> None:
    pass


def several(them: list[Float[Tensor, "n"]]) -> None:
    pass


@dataclass(frozen=True)
class Factors:
    b: Float[Tensor, "m r"]
    a: Float[Tensor, "r n"]

    def joined(self, more: "Factors") -> "Factors":
        return made.pop() if made else more
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    (folder / "checked_shapes.py").write_text(MODULE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with shape_checks.install(["checked_shapes"]):
            yield importlib.import_module("checked_shapes")
        del sys.modules["checked_shapes"]


A, ROW = torch.zeros(3, 4), torch.zeros(4)


def _right(module) -> None:
    module.made.clear()
    assert module.twice(A).shape == module.twice(A, ROW).shape == module.twice(A, b=ROW).shape == (3, 4)
    module.rows(A, 3)
    module.side(ROW, "left")
    module.pair((ROW, ROW))
    module.several([ROW, ROW])
    factors = module.Factors(A, torch.zeros(4, 5))
    assert factors.joined(factors) is factors


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize(
    "call",
    [
        lambda module: module.twice(ROW),
        lambda module: module.twice(A.int()),
        lambda module: module.twice(A, torch.zeros(3)),
        lambda module: module.twice(A, b=torch.zeros(3)),
        lambda module: module.twice("text"),
        lambda module: module.rows(A, 2),
        lambda module: module.side(ROW, "up"),
        lambda module: module.pair((ROW, torch.zeros(5))),
        lambda module: module.several([A, A]),
        lambda module: module.Factors(A, torch.zeros(5, 4)),
        lambda module: module.Factors(A, torch.zeros(4, 5)).joined(A),
    ],
)
def test_a_wrong_call_is_refused_whatever_went_before(module, before, call):
    for _ in range(before):
        _right(module)
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            call(module)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("out", [A.T, ROW, A.int(), None])
def test_a_wrong_result_is_refused_whatever_went_before(module, before, out):
    for _ in range(before):
        _right(module)
    for _ in range(2):
        module.made.append(out)
        with pytest.raises(TypeCheckError):
            module.twice(A)
    module.made.append(out)
    with pytest.raises(TypeCheckError):
        module.Factors(A, torch.zeros(4, 5)).joined(module.Factors(A, torch.zeros(4, 5)))


def test_a_wrong_call_is_refused_before_the_work(module):
    module.made.append("not taken")
    with pytest.raises(TypeCheckError):
        module.twice(A, torch.zeros(3))
    assert module.made == ["not taken"]


def test_the_functions_of_the_package_are_checked():
    from loraport.core.lowrank import LowRank

    with pytest.raises(TypeCheckError):
        LowRank(torch.zeros(3, 2), torch.zeros(3, 4))
