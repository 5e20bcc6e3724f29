"""Plain LoRA: two factors, the update is up @ down. On a convolution LyCORIS may put a Tucker core between them."""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from loraport.adapters.kinds.base import AdapterKind, Claim, Piece, check_rank, matrix_shape, misfit, register


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
    plain = True

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """Both factors, fitting each other. See `AdapterKind.claim`."""
        missing = [part for part in self.essential if part not in parts]
        if missing:
            return missing[0] if len(missing) == 1 else None
        down, up = parts["down"], parts["up"]
        a, b = matrix_shape(down.ref), matrix_shape(up.ref)
        core = parts["mid"].ref.shape if "mid" in parts else None
        if a is None or b is None or not _fits(b[1], a[0], core):
            named = [parts[part] for part in (*self.essential, "mid") if part in parts]
            fix = "the file is damaged or not a plain LoRA"
            raise misfit(f"the two factors of {module} do not fit each other", named, fix)
        if core is not None:
            shape = (b[0], a[1] * prod(core[2:]))
            check_rank(module, max(core[:2]), shape, parts["mid"])
            roles = {"A": down.ref, "B": up.ref, "mid": parts["mid"].ref}
            kernel = (b[0], a[1], *core[2:])
            return Claim(roles, shape, core[0], a[0], (*self.essential, "mid"), kernel=kernel)
        check_rank(module, a[0], (b[0], a[1]), down)
        return Claim({"A": down.ref, "B": up.ref}, (b[0], a[1]), a[0], a[0], self.essential)


def _fits(up: int, down: int, core: tuple[int, ...] | None) -> bool:
    """Whether factors of these ranks belong together: those of one rank, or with a core of both ranks between them."""
    if core is None:
        return up == down > 0
    return len(core) > 2 and core[:2] == (up, down) and 0 not in core
