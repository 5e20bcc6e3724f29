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

import math
from collections.abc import Mapping
from math import isqrt, prod
from typing import ClassVar

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from loraport.adapters.kinds.base import Claim, OnSource, Piece, finite_update, misfit, register
from loraport.adapters.peft_config import PEFT_PREFIX
from loraport.adapters.scale import read_number
from loraport.containers.tensors import TensorRef, read_float
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError, UnsupportedError

LARGEST_SERIES = 64  # terms of the series; PEFT's own number is 5


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
        known = _block_of(ref) if main == "oft_R" else rows or inputs
        if known is None or ("rescale" in roles and prod(roles["rescale"].shape) != rows):
            named = [parts[part] for part in (main, "rescale") if part in parts]
            raise misfit(f"the rotations of {module} are not blocks of one layer", named)
        used = tuple(part for part in (*self.essential, *self.optional) if part in parts)
        settings = {"bound": float(rows or 0) if parts[main].at.flat else 1.0} if "oft_bound" in roles else {}
        if main == "oft_R" and not parts[main].at.prefix.startswith(PEFT_PREFIX):
            scaled = "scaled_oft" in parts and bool(read_number(parts["scaled_oft"].ref))
            settings = {"neumann": 5.0, "coft": 0.0, "scaled": float(scaled)}
        return Claim(roles, (rows, inputs), None, None, used, "a rotation, which has no scale", True, settings)

    def update(
        self, parts: Mapping[str, TensorRef], weight: Float32[Tensor, "m n *kernel"], settings: Mapping[str, float]
    ) -> LowRank:
        """One matrix as large as the weight. See `OnSource.update`."""
        main = next(iter(parts))
        own = weight.reshape(len(weight), -1)
        if main == "oft_blocks":
            changed = _rows_turned(own, parts, settings.get("bound", 0.0))
        else:
            if weight.dim() > 2:
                raise _on_kernel(parts[main])
            turned = self._inputs_turned(own.T, parts, settings)
            changed = turned.T * read_float(parts["boft_s"]).reshape(-1, 1) if main == "boft_R" else turned.T
        if "rescale" in parts:
            changed = changed * read_float(parts["rescale"]).reshape(-1, 1)
        return finite_update(changed - own, parts[main])

    def _inputs_turned(
        self, inputs: Float32[Tensor, "n m"], parts: Mapping[str, TensorRef], settings: Mapping[str, float]
    ) -> Float32[Tensor, "n m"]:
        if "boft_R" in parts:
            stages = read_float(parts["boft_R"])
            turns = _cayley((stages.mT - stages) / 2)
            for stage, turn in enumerate(turns):
                inputs = _turned(inputs, turn, _interleaved(len(inputs), turn.shape[-1], stage), back=True)
            return inputs
        if "neumann" not in settings:
            raise UnsupportedError(
                "PEFT's OFT can be read with its configuration only, which says how the rotations are made",
                where=str(parts["oft_R"].file),
                values=parts["oft_R"].key,
                fix="put the adapter_config.json that was saved with it beside the file",
            )
        vectors = read_float(parts["oft_R"])
        if settings.get("scaled"):
            vectors = vectors / math.sqrt(vectors.shape[1])
        block = _block_of(parts["oft_R"])
        assert block is not None
        count = len(inputs) // block
        if len(vectors) not in (1, count) or count * block != len(inputs):
            raise MismatchError(
                "the rotations do not fit the layer",
                where=str(parts["oft_R"].file),
                values=f"{parts['oft_R'].key}: {len(vectors)} blocks of {block} for {len(inputs)} inputs",
            )
        skew = _antisymmetric(vectors, block, settings["coft"])
        turns = _series(skew, int(settings["neumann"])) if settings["neumann"] else _cayley(-skew)
        return (turns @ inputs.reshape(count, block, -1)).reshape(inputs.shape)


def _on_kernel(ref: TensorRef) -> UnsupportedError:
    return UnsupportedError(
        "PEFT's OFT and BOFT on a convolution are not supported",
        where=str(ref.file),
        values=ref.key,
        fix="leave the layer out with --drop",
    )


def _block_of(ref: TensorRef) -> int | None:
    """The side of the blocks that vectors of b (b - 1) / 2 entries stand for."""
    if len(ref.shape) != 2:
        return None
    block = (1 + isqrt(1 + 8 * ref.shape[1])) // 2
    return block if block > 1 and block * (block - 1) // 2 == ref.shape[1] else None


def _sides(main: str, ref: TensorRef, parts: Mapping[str, Piece]) -> tuple[int | None, int | None]:
    """Rows and inputs of the weight, as far as the blocks tell them; neither where they are no blocks."""
    if main == "oft_R":
        block = _block_of(ref)
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


def _cayley(skew: Float32[Tensor, "... b b"]) -> Float32[Tensor, "... b b"]:
    """(1 + Q) (1 - Q)^-1, which exists for every antisymmetric Q."""
    eye = torch.eye(skew.shape[-1])
    return torch.linalg.solve(eye - skew, eye + skew, left=False)


def _series(skew: Float32[Tensor, "k b b"], terms: int) -> Float32[Tensor, "k b b"]:
    """PEFT's series: 1 + 2 Q + 2 Q^2 + ..., the last power once."""
    turns = torch.eye(skew.shape[-1]).expand_as(skew).clone()
    if terms > 1:
        turns += 2 * skew
    if terms > 2:
        power = skew @ skew
        turns += 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            turns += 2 * power
        turns += power @ skew
    return turns


def _antisymmetric(vectors: Float32[Tensor, "k e"], block: int, bound: float) -> Float32[Tensor, "k b b"]:
    """From the entries above the diagonal; the norm of each block bounded where `bound` is above zero (COFT)."""
    skew = torch.zeros(len(vectors), block, block)
    above = torch.triu_indices(block, block, 1)
    skew[:, above[0], above[1]] = vectors
    skew = skew - skew.mT
    if bound > 0:
        norm = torch.linalg.matrix_norm(skew, keepdim=True)
        limit = bound / math.sqrt(len(vectors))
        skew = torch.where(norm <= limit, skew, skew * (limit / norm.clamp_min(1e-30)))
    return skew


def _rows_turned(own: Float32[Tensor, "m n"], parts: Mapping[str, TensorRef], unit: float) -> Float32[Tensor, "m n"]:
    blocks = read_float(parts["oft_blocks"])
    skew = blocks - blocks.mT
    bound = read_number(parts["oft_bound"]) * unit if "oft_bound" in parts else 0.0
    norm = float(torch.linalg.vector_norm(skew))
    if 0 < bound < norm:
        skew = skew * (bound / norm)
    turns = _cayley(skew)
    if turns.dim() == 3:
        return (turns.mT @ own.reshape(len(turns), turns.shape[-1], -1)).reshape(own.shape)
    for stage, turn in enumerate(turns):
        half = 2**stage * (turn.shape[-1] // 2)
        pairs = torch.arange(len(own)).view(-1, 2, half).mT.reshape(-1)
        own = _turned(own, turn, pairs, back=False)
    return own


def _turned(
    rows: Float32[Tensor, "m n"], turn: Float32[Tensor, "k b b"], order: Int64[Tensor, " m"], *, back: bool
) -> Float32[Tensor, "m n"]:
    """Rows put in another order, turned block by block, and put back; `back` means the inverse of that order first."""
    there = torch.argsort(order) if back else order
    turned = (turn @ rows[there].reshape(len(turn), turn.shape[-1], -1)).reshape(rows.shape)
    return turned[torch.argsort(there)]


def _interleaved(size: int, block: int, stage: int) -> Int64[Tensor, " m"]:
    """PEFT's order: in every 2^stage blocks, the even half blocks before the odd ones."""
    if stage == 0:
        return torch.arange(size)
    return torch.arange(size).view(-1, 2**stage, 2, block // 2).transpose(1, 2).reshape(-1)
