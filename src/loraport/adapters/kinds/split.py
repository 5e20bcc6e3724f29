"""Several pairs of factors on one weight, each for some of its rows (kohya's and musubi-tuner's split_dims, SAT).

    [B0 A0; B1 A1; ...]

as one: the blocks B0, B1, ... on a diagonal, and A0, A1, ... below each other. The rank is the sum of theirs.
"""

from collections.abc import Mapping
from typing import ClassVar

from loraport.adapters.kinds.base import AdapterKind, Claim, Piece, check_rank, matrix_shape, misfit, register
from loraport.containers.references import TensorRef, all_zero
from loraport.models.placement import Rows, take_ref

MOST = 8  # pairs; trainers split a weight in up to four


class SplitFactors(AdapterKind):
    linear: ClassVar[tuple[str, ...]] = ()  # of text encoders, several parts would have to be scaled
    plain = True

    @classmethod
    def _parts(cls) -> list[tuple[str, str]]:
        return [(f"{cls.name}_down_{n}", f"{cls.name}_up_{n}") for n in range(MOST)]

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """Pairs from the first on, of one rank. See `AdapterKind.claim`."""
        names = self._parts()
        last = max((n for n, pair in enumerate(names) for part in pair if part in parts), default=None)
        if last is None:
            return None
        used = [part for pair in names[: last + 1] for part in pair]
        missing = next((part for part in used if part not in parts), None)
        if missing is not None:
            return missing
        sides = [matrix_shape(parts[part].ref) for part in used]
        downs, ups = sides[::2], sides[1::2]
        first = downs[0]
        if (
            first is None
            or 0 in first
            or any(d != first for d in downs)
            or any(u is None or u[1] != first[0] for u in ups)
        ):
            named = [parts[part] for part in used]
            raise misfit(f"the pairs of factors of {module} do not fit each other", named)
        shape = (sum(up[0] for up in ups if up is not None), first[1])
        for part in used[::2]:
            check_rank(module, first[0], shape, parts[part])
        rank = first[0] * len(downs)
        return Claim({part: parts[part].ref for part in used}, shape, rank, first[0], tuple(used))

    def is_zero(self, parts: Mapping[str, TensorRef]) -> bool:
        """Whether every pair is. See `AdapterKind.is_zero`."""
        refs = list(parts.values())
        return all(all_zero(up) or all_zero(down) for down, up in zip(refs[::2], refs[1::2], strict=True))

    def narrow(self, parts: Mapping[str, TensorRef], rows: Rows) -> dict[str, TensorRef] | None:
        """The one pair that all these rows belong to. See `AdapterKind.narrow`."""
        names, start = list(parts), 0
        for down, up in zip(names[::2], names[1::2], strict=True):
            end = start + parts[up].shape[0]
            if all(start <= first and last <= end for first, last in rows):
                own = tuple((first - start, last - start) for first, last in rows)
                return {down: parts[down], up: take_ref(parts[up], own)}
            start = end
        return None

    def rank_of(self, parts: Mapping[str, TensorRef], rank: int) -> int:
        """That of the pairs that are left. See `AdapterKind.rank_of`."""
        return sum(ref.shape[0] for ref in list(parts.values())[::2])


def _named(kind: str, down: str, up: str) -> dict[str, tuple[str, ...]]:
    return {
        f"{kind}_{half}_{n}": (text.replace("<n>", str(n)),)
        for n in range(MOST)
        for half, text in (("down", down), ("up", up))
    }


@register
class Split(SplitFactors):
    """lora_down.0.weight, lora_up.0.weight, lora_down.1.weight, ...; alpha is divided by the rank of one pair."""

    name = "split"
    title = "split LoRA"
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = _named("split", ".lora_down.<n>.weight", ".lora_up.<n>.weight")
    essential = tuple(endings)


@register
class Sat(SplitFactors):
    """matrix_A.0, matrix_B.0, ... of SwissArmyTransformer (CogVideoX). Its files never say their alpha, which is 1
    unless a configuration says otherwise: the scale must be stated."""

    name = "sat"
    title = "SAT LoRA"
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = _named("sat", ".matrix_A.<n>", ".matrix_B.<n>")
    essential = tuple(endings)
    scale_unsaid = True
