"""The weight times rotations of blocks."""

import math

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from loraport.adapters.kinds.oft import Oft, block_of
from loraport.adapters.loading.base import Numbers, Parts, change, finite_update
from loraport.adapters.scale import read_number
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError, UnsupportedError


@change.register(Oft)
def rotated(kind: Oft, parts: Parts, weight: Float32[Tensor, "m n *kernel"], settings: Numbers) -> LowRank:
    """One matrix as large as the weight."""
    main = next(iter(parts))
    own = weight.reshape(len(weight), -1)
    if main == "oft_blocks":
        changed = _rows_turned(own, parts, settings.get("bound", 0.0))
    else:
        turned = _inputs_turned(own.T, parts, settings)
        changed = turned.T * read_float(parts["boft_s"]).reshape(-1, 1) if main == "boft_R" else turned.T
    if "rescale" in parts:
        changed = changed * read_float(parts["rescale"]).reshape(-1, 1)
    return finite_update(changed - own, parts[main])


def _inputs_turned(inputs: Float32[Tensor, "n m"], parts: Parts, settings: Numbers) -> Float32[Tensor, "n m"]:
    if "boft_R" in parts:
        stages = read_float(parts["boft_R"])
        turns = _cayley((stages.mT - stages) / 2)
        for stage, turn in enumerate(turns):
            inputs = _turned(inputs, turn, _interleaved(len(inputs), turn.shape[-1], stage), back=True)
        return inputs
    if "neumann" not in settings:
        raise UnsupportedError(
            "PEFT's OFT can only be read with its configuration, which says how the rotations are made",
            where=str(parts["oft_R"].file),
            values=parts["oft_R"].key,
            fix="put the adapter_config.json that was saved with it beside the file",
        )
    vectors = read_float(parts["oft_R"])
    if settings.get("scaled"):
        vectors = vectors / math.sqrt(vectors.shape[1])
    block = block_of(parts["oft_R"])
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


def _cayley(skew: Float32[Tensor, "... b b"]) -> Float32[Tensor, "... b b"]:
    """(1 + Q) (1 - Q)^-1, which exists for every antisymmetric Q."""
    eye = torch.eye(skew.shape[-1], dtype=torch.float32)
    return torch.linalg.solve(eye - skew, eye + skew, left=False)


def _series(skew: Float32[Tensor, "k b b"], terms: int) -> Float32[Tensor, "k b b"]:
    """PEFT's series: 1 + 2 Q + 2 Q^2 + ..., the last power once."""
    turns = torch.eye(skew.shape[-1], dtype=torch.float32).expand_as(skew).clone()
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
    skew = torch.zeros(len(vectors), block, block, dtype=torch.float32)
    above = torch.triu_indices(block, block, 1)
    skew[:, above[0], above[1]] = vectors
    skew = skew - skew.mT
    if bound > 0:
        norm = torch.linalg.matrix_norm(skew, keepdim=True)
        limit = bound / math.sqrt(len(vectors))
        skew = torch.where(norm <= limit, skew, skew * (limit / norm.clamp_min(1e-30)))
    return skew


def _rows_turned(own: Float32[Tensor, "m n"], parts: Parts, unit: float) -> Float32[Tensor, "m n"]:
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
