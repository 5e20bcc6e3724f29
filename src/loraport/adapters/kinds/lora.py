"""Plain LoRA: two factors, the update is up @ down. On a convolution LyCORIS may put a Tucker core between them."""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from loraport.adapters.kinds.base import (
    AdapterKind,
    Claim,
    Piece,
    check_rank,
    matrix_shape,
    misfit,
    register,
)


@register
class Lora(AdapterKind):
    """B (m x r, "up") and A (r x n, "down"), either of them also as a convolution with a kernel of size 1.

    With mid (r x s x kernel) A is s x inputs.
    """

    name = "lora"
    title = "LoRA"
    essential = ("down", "up")
    optional = ("mid",)
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {"mid": (".lora_mid.weight",)}
    linear = ("up",)
    rowwise = ("B",)

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """Both factors, fitting each other. See `AdapterKind.claim`."""
        missing = [part for part in self.essential if part not in parts]
        if missing:
            return missing[0] if len(missing) == 1 else None
        down, up = parts["down"], parts["up"]
        a, b = matrix_shape(down.ref), matrix_shape(up.ref)
        mid = parts["mid"].ref.shape if "mid" in parts else None
        between = (a[0], b[1]) if a is not None and b is not None else (0, 1)
        if mid is not None and len(mid) > 2 and a is not None:
            between = (mid[0], b[1]) if b is not None and mid[1] == a[0] else (0, 1)
        if a is None or b is None or between[0] != between[1] or 0 in (*between, *(mid or ())):
            named = [parts[part] for part in (*self.essential, "mid") if part in parts]
            fix = "the file is damaged or not a plain LoRA"
            raise misfit(f"the two factors of {module} do not fit each other", named, fix)
        if mid is not None:
            shape = (b[0], a[1] * prod(mid[2:]))
            check_rank(module, max(mid[0], mid[1]), shape, parts["mid"])
            roles = {"A": down.ref, "B": up.ref, "mid": parts["mid"].ref}
            kernel = (b[0], a[1], *mid[2:])
            return Claim(roles, shape, mid[0], a[0], (*self.essential, "mid"), kernel=kernel)
        check_rank(module, a[0], (b[0], a[1]), down)
        return Claim({"A": down.ref, "B": up.ref}, (b[0], a[1]), a[0], a[0], self.essential)

    def factored(self, shape: tuple[int, int], rank: int) -> bool:
        """Always: that is how it lies in the file."""
        return True

    def size(self, shape: tuple[int, int], rank: int) -> str:
        """The rank."""
        return str(rank)
