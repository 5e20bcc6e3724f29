"""The coefficients that are fitted: an update is a weighted sum of fixed directions, `Σ_k c_k D_k`.

A direction is a low-rank update of some layers. One gain per group is `D_k = Δ` on the layers of group k, starting
at 1; a restore share per group is `D_k = Δ' - Δ` there, starting at 0, where Δ' is what a weight-space transfer gave;
one gain per rank component is each rank-one part of Δ. Whatever the coefficients mean, everything else of the room
sees only this.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.errors import UsageError

GROUPS = ("global", "type", "depth", "type-depth", "layer", "component")
DEPTHS = 4
"""Blocks are gathered into this many stretches of depth."""
_TYPES = {
    "self_attn.q": "self q/k",
    "self_attn.k": "self q/k",
    "self_attn.v": "self v",
    "self_attn.o": "self out",
    "cross_attn.q": "cross q/k",
    "cross_attn.k": "cross q/k",
    "cross_attn.k_img": "cross q/k",
    "cross_attn.v": "cross v",
    "cross_attn.v_img": "cross v",
    "cross_attn.o": "cross out",
    "ffn.0": "ffn in",
    "ffn.2": "ffn out",
}
Update = Mapping[str, LowRank]


@dataclass(frozen=True)
class Direction:
    """One thing that can be turned.

    Attributes:
        label: for people and for the header, unique among the directions of a fit.
        kind: `gain` or `restore`. start: the coefficient of direct reuse. update: layer -> D_k.
    """

    label: str
    kind: str
    start: float
    update: dict[str, LowRank]


@dataclass(frozen=True)
class Directions:
    """All directions of a fit, in order."""

    items: tuple[Direction, ...]

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Layers that any direction touches."""
        return tuple(dict.fromkeys(name for item in self.items for name in item.update))

    @property
    def labels(self) -> tuple[str, ...]:
        """One label a coefficient."""
        return tuple(item.label for item in self.items)

    def start(self) -> Float[Tensor, " k"]:
        """The coefficients of direct reuse."""
        return torch.tensor([item.start for item in self.items], dtype=torch.float64)

    def of_kind(self, kind: str) -> list[int]:
        """Positions of one kind of direction."""
        return [k for k, item in enumerate(self.items) if item.kind == kind]

    def terms(self, layer: str) -> list[tuple[int, LowRank]]:
        """The directions that touch a layer, by position."""
        return [(k, item.update[layer]) for k, item in enumerate(self.items) if layer in item.update]

    def total(self, coefficients: Float[Tensor, " k"]) -> dict[str, LowRank]:
        """`Σ_k c_k D_k`, exactly, layer by layer; terms with coefficient 0 are left out."""
        values = coefficients.tolist()
        made = {}
        for layer in self.layers:
            terms = self.terms(layer)
            parts = [term.scaled(values[k]) for k, term in terms if values[k] != 0]
            m, n = terms[0][1].shape
            made[layer] = LowRank.sum(parts) if parts else LowRank.zeros(m, n, 1)
        return made


def gains(update: Update, groups: str = "type-depth", *, blocks: int | None = None) -> list[Direction]:
    """One gain per group, starting at 1. Raises UsageError for an unknown kind of group."""
    found: dict[str, dict[str, LowRank]] = {}
    if groups == "component":
        for name, whole in update.items():
            U, S, Vh = whole.svd()
            for i in range(len(S)):
                part = LowRank.from_svd(U[:, i : i + 1], S[i : i + 1], Vh[i : i + 1])
                found[f"{name} [{i}]"] = {name: part}
    else:
        for label, names in grouped(list(update), groups, blocks=blocks).items():
            found[label] = {name: update[name] for name in names}
    return [Direction(label, "gain", 1.0, part) for label, part in found.items()]


def restores(
    update: Update, moved: Update, groups: str = "type-depth", *, blocks: int | None = None
) -> list[Direction]:
    """One share of `moved - update` per group, starting at 0."""
    difference = {name: LowRank.sum([moved[name], update[name].scaled(-1.0)]) for name in update if name in moved}
    named = grouped(list(difference), groups, blocks=blocks)
    return [
        Direction(f"restore {label}", "restore", 0.0, {name: difference[name] for name in names})
        for label, names in named.items()
    ]


def grouped(layers: Sequence[str], groups: str, *, blocks: int | None = None) -> dict[str, list[str]]:
    """Layers by group, groups in the order in which they first occur.

    Args:
        layers: canonical names.
        groups: one of `GROUPS`; `component` groups as `layer` does.
        blocks: blocks of the model; by default as many as the layers show.

    Raises:
        UsageError: an unknown kind of group.
    """
    if groups not in GROUPS:
        raise UsageError("there is no such grouping", values=f"{groups!r}; known: {', '.join(GROUPS)}")
    most = blocks or max((_block(name) for name in layers), default=0) + 1
    found: dict[str, list[str]] = {}
    for name in layers:
        parts = {"type": _type(name), "depth": _depth(name, most)}
        label = {
            "global": "all layers",
            "type": parts["type"],
            "depth": parts["depth"],
            "type-depth": f"{parts['depth']} {parts['type']}",
        }.get(groups, name)
        found.setdefault(label, []).append(name)
    return found


def _block(name: str) -> int:
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _type(name: str) -> str:
    return _TYPES.get(re.sub(r"^blocks\.\d+\.", "", name), "other")


def _depth(name: str, blocks: int) -> str:
    block = _block(name)
    if block < 0:
        return "outside the blocks"
    count = min(DEPTHS, blocks)
    stretch = block * count // blocks
    first = -(-stretch * blocks // count)
    last = -(-(stretch + 1) * blocks // count) - 1
    return f"block {first}" if first == last else f"blocks {first}-{last}"
