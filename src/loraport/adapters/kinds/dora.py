"""DoRA: the direction of the changed weight at a magnitude that was learned, W' = m (W + s D) / ||W + s D||.

D is the update of another kind, s its scale. The norm is taken of every row (PEFT, ai-toolkit, LyCORIS since 2025) or
of every input (LyCORIS and OneTrainer before): the shape of the magnitude says which. Trainers agree on the formula;
of what programs do otherwise docs/kinds.md speaks.
"""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from loraport.adapters.kinds.base import KINDS, Claim, OnSource, Piece, register
from loraport.containers.references import TensorRef
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.placement import Rows, take_ref

INNER = {"lora": "A", "loha": "hada_w1_b", "lokr": ""}  # kind -> a role that none of the others has


@register
class Dora(OnSource):
    """A magnitude beside the parts of a LoRA, LoHa or LoKr.

    dora_scale: m x 1 for rows or 1 x n for inputs, with further ones for a convolution. magnitude (PEFT's
    lora_magnitude_vector, ai-toolkit's magnitude): m entries, always for rows.
    """

    name = "dora"
    title = "DoRA"
    essential = ("dora_scale", "magnitude")
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "dora_scale": (".dora_scale",),
        "magnitude": (
            ".lora_magnitude_vector",
            ".lora_magnitude_vector.weight",
            ".lora_magnitude_vector.<adapter>.weight",
            ".magnitude",
        ),
    }
    scale_inside = True

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """The magnitude, and what another kind claims. See `AdapterKind.claim`."""
        mine = [part for part in self.essential if part in parts]
        if not mine:
            return None
        found = [KINDS[name].claim(module, parts) for name in INNER]
        inner = next((claim for claim in found if isinstance(claim, Claim)), None)
        if inner is None:
            others = [kind for kind in KINDS.values() if kind.name not in (*INNER, self.name)]
            other = next((kind for kind in others if any(part in parts for part in kind.essential)), None)
            if other is not None:
                raise UnsupportedError(
                    f"{module} has a magnitude on {other.title}: DoRA is only supported on LoRA, LoHa and LoKr",
                    where=str(parts[mine[0]].ref.file),
                    values=parts[mine[0]].key,
                    fix=f"leave the layer out with --drop {module}",
                )
            return next((missing for missing in found if isinstance(missing, str)), "down")
        m, n = inner.shape
        assert m is not None
        assert n is not None
        ref = parts[mine[0]].ref
        if len(mine) > 1 or inputs_of(ref, mine[0], m, n) is None:
            raise MismatchError(
                f"the magnitude of {module} does not fit its factors",
                where=str(ref.file),
                values=", ".join(f"{parts[part].key} {list(parts[part].ref.shape)}" for part in mine)
                + f" for {m} x {n}",
                fix="the file is damaged; use another copy",
            )
        roles = {**inner.parts, mine[0]: ref}
        return Claim(roles, (m, n), min(m, n), inner.divisor, (*inner.used, *mine), inner.unscaled)

    def narrow(self, parts: Mapping[str, TensorRef], rows: Rows) -> dict[str, TensorRef] | None:
        """As the kind below it, where every row has its own norm. See `AdapterKind.narrow`."""
        part, inner = next(part for part in self.essential if part in parts), KINDS[inner_kind(parts)]
        below = inner.narrow({role: ref for role, ref in parts.items() if role not in self.essential}, rows)
        ref = parts[part]
        if below is None or not ref.shape[0] == prod(ref.shape) == parts[inner.rowwise[0]].shape[0]:
            return None
        return {**below, part: take_ref(ref, rows)}


def inner_kind(parts: Mapping[str, TensorRef]) -> str:
    """The kind of the update below the magnitude."""
    return next(name for name, role in INNER.items() if not role or role in parts)


def inputs_of(ref: TensorRef, part: str, m: int, n: int) -> int | None:
    """How many inputs have a norm of their own; 0 where the rows have; None where the magnitude fits neither."""
    count = prod(ref.shape)
    if count == m and (part == "magnitude" or ref.shape[:1] == (m,)):
        return 0
    of_inputs = part == "dora_scale" and 0 < count == max(ref.shape, default=0) and n % count == 0
    return count if of_inputs and (len(ref.shape) == 1 or ref.shape[1] == count) else None
