"""Sums over slices that share a label, to the same bits in every run.

On a GPU `index_add_` and its like add by atomic operations, in whatever order they come: the last bits change from run
to run, and a decision that hangs on them changes with them.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def sums(X: Tensor, labels: Int[Tensor, " k"], count: int, dim: int = 0) -> Tensor:
    """Sum over the slices of each label, in the order in which they stand.

    Args:
        X: a vector or a matrix.
        labels: of its slices, from 0 to `count` - 1.
        count: number of labels; one that no slice has gets zeros.
        dim: 0 for rows, 1 for columns.
    """
    if X.device.type == "mps":  # which adds by atomic operations, whatever it is asked
        return sums(X.cpu(), labels.cpu(), count, dim).to(X.device)
    shape = list(X.shape)
    shape[dim] = count
    if X.device.type == "cpu":
        return _matrix_on_cpu(X, labels, count, dim) if X.dim() == 2 else X.new_zeros(shape).index_add_(dim, labels, X)
    found = X.new_zeros(shape)
    # Adds what is sorted by its place; unlike the other operations that add, it has no faster way that does not.
    (found.T if dim == 1 else found).index_put_((labels,), X.T if dim == 1 else X, accumulate=True)
    return found


def _matrix_on_cpu(X: Tensor, labels: Tensor, count: int, dim: int) -> Tensor:
    """The first slice of a label is copied, since most have no other."""
    own = torch.arange(len(labels))
    first = torch.full((count,), len(labels)).scatter_reduce_(0, labels, own, "amin")
    if bool((first < len(labels)).all()):
        others = (own != first[labels]).nonzero()[:, 0]
        return X.index_select(dim, first).index_add_(dim, labels[others], X.index_select(dim, others))
    shape = (count, X.shape[1]) if dim == 0 else (X.shape[0], count)
    return X.new_zeros(shape).index_add_(dim, labels, X)
