"""OFT and BOFT: the weight times rotations of blocks, R = (1 + Q) (1 - Q)^-1 of antisymmetric Q (Cayley).

    oft_blocks, k x b x b         kohya, LyCORIS: of the rows, R^T W block by block
    oft_blocks, s x k x b x b     BOFT of LyCORIS: R W in s stages, each after a butterfly permutation of the rows
    oft_R, k x b(b-1)/2           PEFT: of the inputs, W R^T; as the series or the inverse, as the configuration says.
                                  OneTrainer: always as the series of five terms; with scaled_oft, vectors by the
                                  root of their length
    boft_R, s x k x b x b         BOFT of PEFT: of the inputs, and every row times its entry of boft_s

An alpha is no scale here: it bounds the norm of Q. kohya and LyCORIS, whose names are flattened, mean alpha times the
number of rows; ComfyUI's trainer, which alone writes oft_blocks behind dotted names, means alpha itself.
"""

from collections.abc import Mapping
from math import isqrt, prod
from typing import ClassVar

from loraport.adapters.kinds.base import Claim, OnSource, Piece, misfit, register
from loraport.adapters.peft_config import PEFT_PREFIX
from loraport.adapters.scale import read_number
from loraport.containers.references import TensorRef
from loraport.errors import UnsupportedError


@register
class Oft(OnSource):
    """Blocks of rotations, with a factor for each row where there is a `rescale`."""

    name = "oft"
    title = "OFT"
    essential = ("oft_blocks", "oft_R", "boft_R", "boft_s")
    optional = ("rescale", "scaled_oft")
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "oft_blocks": (".oft_blocks",),
        "rescale": (".rescale",),
        "scaled_oft": (".oft_R.scaled_oft",),
        "oft_R": (".oft_R.weight", ".oft_R.<adapter>.weight"),
        "boft_R": (".boft_R", ".boft_R.<adapter>"),
        "boft_s": (".boft_s", ".boft_s.<adapter>"),
    }

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """The blocks, and what belongs to them. See `AdapterKind.claim`."""
        main = next((part for part in ("oft_blocks", "oft_R", "boft_R") if part in parts), None)
        if main is None:
            return "boft_R" if "boft_s" in parts else None
        if main == "boft_R" and "boft_s" not in parts:
            return "boft_s"
        ref = parts[main].ref
        roles = {main: ref} | {part: parts[part].ref for part in ("rescale", "boft_s") if part in parts}
        if main == "oft_blocks" and "alpha" in parts:
            roles["oft_bound"] = parts["alpha"].ref
        rows, inputs = _sides(main, ref, parts)
        known = block_of(ref) if main == "oft_R" else rows or inputs
        if known is None or ("rescale" in roles and prod(roles["rescale"].shape) != rows):
            named = [parts[part] for part in (main, "rescale") if part in parts]
            raise misfit(f"the rotations of {module} are not blocks of one layer", named)
        used = tuple(part for part in (*self.essential, *self.optional) if part in parts)
        settings = {"bound": float(rows or 0) if parts[main].at.flat else 1.0} if "oft_bound" in roles else {}
        if main == "oft_R" and not parts[main].at.prefix.startswith(PEFT_PREFIX):
            scaled = "scaled_oft" in parts and bool(read_number(parts["scaled_oft"].ref))
            settings = {"neumann": 5.0, "coft": 0.0, "scaled": float(scaled)}
        return Claim(roles, (rows, inputs), None, None, used, "a rotation, which has no scale", True, settings)

    def check_kernel(self, module: str, piece: Piece) -> None:
        """PEFT unfolds the kernel in an order of its own. See `OnSource.check_kernel`."""
        if piece.part != "oft_blocks":
            raise UnsupportedError(
                "PEFT's OFT and BOFT on a convolution are not supported",
                where=str(piece.ref.file),
                values=piece.key,
                fix=f"leave the layer out with --drop {module}",
            )


def block_of(ref: TensorRef) -> int | None:
    """The side of the blocks that vectors of b (b - 1) / 2 entries stand for."""
    if len(ref.shape) != 2:
        return None
    block = (1 + isqrt(1 + 8 * ref.shape[1])) // 2
    return block if block > 1 and block * (block - 1) // 2 == ref.shape[1] else None


def _sides(main: str, ref: TensorRef, parts: Mapping[str, Piece]) -> tuple[int | None, int | None]:
    """Rows and inputs of the weight, as far as the blocks tell them; neither where they are no blocks."""
    if main == "oft_R":
        block = block_of(ref)
        # One block may stand for all.
        return None, None if block is None or ref.shape[0] == 1 else ref.shape[0] * block
    square = len(ref.shape) in (3, 4) and ref.shape[-1] == ref.shape[-2] and prod(ref.shape) > 0
    if not square or (main == "boft_R" and len(ref.shape) != 4):
        return None, None
    size, block = ref.shape[-3] * ref.shape[-2], ref.shape[-1]
    stages = ref.shape[0] if len(ref.shape) == 4 else 0
    if main == "oft_blocks":
        return (size, None) if not stages or _halves(size, block, stages) else (None, None)
    return (prod(parts["boft_s"].ref.shape), size) if stages == 1 or _halves(size, block, stages) else (None, None)


def _halves(size: int, block: int, stages: int) -> bool:
    """Whether every stage finds whole pairs of half blocks."""
    return block % 2 == 0 and stages < 32 and size % (2 ** (stages - 1) * block) == 0
