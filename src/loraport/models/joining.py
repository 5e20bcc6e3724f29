"""Tensors of modules put together to those of stored weights: what `placement.py` says, done."""

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from jaxtyping import Shaped
from torch import Tensor

from loraport.models.placement import Rows


def join(pieces: Sequence[tuple[Rows, Shaped[Tensor, "_ *rest"]]], rows: int) -> Shaped[Tensor, "M *rest"]:
    """A stored tensor from those of its modules; the rows of modules that are not given are zero. A module that is all
    of it is not copied.

    Args:
        pieces: the rows of a module in the stored tensor, and its own tensor.
        rows: how many rows the stored tensor has.
    """
    if pieces[0][0] == ((0, rows),):
        return pieces[0][1]
    dtype = reduce(torch.promote_types, (tensor.dtype for _, tensor in pieces))
    whole = torch.zeros(rows, *pieces[0][1].shape[1:], dtype=dtype)
    for ranges, tensor in pieces:
        for place, part in parts(ranges, tensor):
            whole[place] = part
    return whole


def parts(rows: Rows, tensor: Shaped[Tensor, "m *rest"]) -> Iterator[tuple[slice, Shaped[Tensor, "_ *rest"]]]:
    """The tensor of a module range by range: the rows of the stored tensor, and what belongs there."""
    sizes = [end - start for start, end in rows]
    return zip((slice(start, end) for start, end in rows), tensor.split(sizes), strict=True)


def join_factors(
    pieces: Sequence[tuple[Rows, Shaped[Tensor, "_ _"], Shaped[Tensor, "_ n"]]], rows: int
) -> tuple[Shaped[Tensor, "M R"], Shaped[Tensor, "R n"]]:
    """The two factors of a stored weight from those of its modules, exactly.

    Modules that share one A, as those of a LoRA that was trained on the fused weight do, keep sharing it, and the
    rank stays. Otherwise B gets a block for each of them, the A's are stacked, and the ranks add up.

    Args:
        pieces: the rows of a module in the stored weight, its B (m x r) and its A (r x n).
        rows: how many rows the stored weight has.
    """
    shared: list[tuple[Tensor, list[tuple[Rows, Tensor]]]] = []
    for ranges, up, down in pieces:
        same = next((ups for other, ups in shared if other.shape == down.shape and torch.equal(other, down)), None)
        if same is None:
            shared.append((down, [(ranges, up)]))
        else:
            same.append((ranges, up))
    return torch.cat([join(ups, rows) for _, ups in shared], dim=1), torch.cat([down for down, _ in shared])
