"""VeRA (PEFT): one pair of random matrices for all layers, and two vectors for each.

diag(b) B diag(d) A, with the first m rows of B (M x r) and the first n columns of A (r x N). PEFT makes the pair anew
from a seed unless it was told to save it; what torch makes of a seed is no part of a file, so such files are refused.
"""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from loraport.adapters.kinds.base import AdapterKind, Claim, Piece, check_rank, misfit, register
from loraport.errors import UnsupportedError


@register
class Vera(AdapterKind):
    """vera_lambda_b (m) and vera_lambda_d (r) of a layer, vera_A and vera_B of the file. There is no scale."""

    name = "vera"
    title = "VeRA"
    essential = ("vera_lambda_b", "vera_lambda_d")
    shared = ("vera_A", "vera_B")
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        part: (f".{part}", f".{part}.<adapter>") for part in (*essential, *shared)
    }
    linear = ("vera_lambda_b",)

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """Both vectors, and the file's pair of matrices. See `AdapterKind.claim`."""
        missing = [part for part in self.essential if part not in parts]
        if missing:
            return missing[0] if len(missing) == 1 else None
        b, d = (parts[part] for part in self.essential)
        if any(part not in parts for part in self.shared):
            raise UnsupportedError(
                "this is VeRA without its two random matrices, which PEFT regenerates from a seed",
                where=str(b.ref.file),
                values=f"{b.key}; no vera_A, vera_B",
                fix="save it with save_projection=True, or turn it into a LoRA with PEFT's convert_to_lora",
            )
        A, B = (parts[part].ref for part in self.shared)
        m, rank = prod(b.ref.shape), prod(d.ref.shape)
        if (
            len(A.shape) != 2
            or len(B.shape) != 2
            or not 0 < rank == A.shape[0] == B.shape[1]
            or not 0 < m <= B.shape[0]
        ):
            named = [parts[part] for part in (*self.essential, *self.shared)]
            raise misfit(f"the vectors of {module} do not fit the matrices of the file", named)
        check_rank(module, rank, (m, A.shape[1]), d)
        used = (*self.essential, *self.shared)
        why = "VeRA, which has no scale"
        return Claim({part: parts[part].ref for part in used}, (m, None), rank, None, used, why, fixed=True)
