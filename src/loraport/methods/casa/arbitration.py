"""The elementwise part of CASA: where update and drift meet on dominant directions, only the larger one stays."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.core.operator import sent
from loraport.methods.casa.clusters import Clusters, block_sum, quantile

_COSINE_FLOOR = 1e-8  # of the published code, in the denominator of the block cosine
_CHUNK = 1 << 17  # entries worked on at a time, so that the passes over them stay in the processor's cache;
_CHUNK_ON_A_DEVICE = 1 << 24  # there, so that what is made on the way takes little of its memory


def block_cosine(
    lora: Float[Tensor, "k k"], fft: Float[Tensor, "k k"], clusters: Clusters
) -> Float[Tensor, "count count"]:
    """Cosine between update and drift within every pair (row cluster, column cluster)."""

    def within(x: Tensor) -> Tensor:
        return block_sum(x, clusters.labels, clusters.labels, clusters.count)

    product, own, other = within(lora * fft), within(lora.square()), within(fft.square())
    return product / (own.sqrt() * other.sqrt() + _COSINE_FLOOR)


def arbitrated_entries(
    lora: Float[Tensor, "a b"],
    fft: Float[Tensor, "a b"],
    clusters: Clusters,
    rows: Bool[Tensor, " a"],
    cols: Bool[Tensor, " b"],
    q_act: float,
) -> Int[Tensor, " hits"]:
    """Flat indices of the entries to arbitrate.

    Candidates lie in a dominant row or column and have update and drift of the same sign. They are scored by
    |C_lora C_fft| times the cosine of their block (1 outside the head); those above the q_act-quantile are hit.
    """
    k = clusters.labels.numel()
    cosine = block_cosine(lora[:k, :k], fft[:k, :k], clusters).clamp_(max=1.0).contiguous()
    rectangles = _strips(rows, cols, clusters.labels)
    scores = lora.new_empty(sum(len(row) * len(col) for row, col, _, _ in rectangles))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []  # what is scored, and its place in `scores`
    left = scores
    for row, col, heads, head_cols in rectangles:
        step = max((_CHUNK if lora.device.type == "cpu" else _CHUNK_ON_A_DEVICE) // lora.shape[1], 1)
        for at, chunk in enumerate(row.split(step)):
            product = lora.index_select(0, chunk).mul_(fft.index_select(0, chunk))  # rows first: columns lie apart
            product = product if col.numel() == lora.shape[1] else product.index_select(1, col)
            agreeing = torch.threshold(product, 0.0, -torch.inf)
            head_rows = clusters.labels[chunk[: max(heads - at * step, 0)]]
            context = cosine.index_select(0, head_rows).index_select(1, head_cols)
            product[: head_rows.numel(), : head_cols.numel()].mul_(context)
            # A cosine is at most 1, so the minimum is the score, and minus infinity where signs differ.
            score, left = left[: product.numel()].view(product.shape), left[product.numel() :]
            parts.append((chunk, col, torch.minimum(product, agreeing, out=score)))
    candidates = int(torch.count_nonzero(_above(scores, -torch.inf)))  # a sum of booleans takes twenty times as long
    if candidates == 0:
        return torch.empty(0, dtype=torch.int64, device=lora.device)
    threshold = quantile(scores, q_act, among_largest=candidates)
    hits = []
    for chunk, col, score in parts:
        i, j = _above(score, threshold).nonzero(as_tuple=True)
        hits.append(chunk[i] * lora.shape[1] + col[j])
    return torch.cat(hits)


def smaller_of(lora: Float[Tensor, " hits"], fft: Float[Tensor, " hits"]) -> Float[Tensor, " hits"]:
    """sign min(|lora|, |fft|) for pairs of one sign: what is taken away so that the sum is the larger of the two."""
    return torch.where(lora.abs() < fft.abs(), lora, fft)


def _strips(
    rows: Bool[Tensor, " a"], cols: Bool[Tensor, " b"], labels: Int[Tensor, " k"]
) -> list[tuple[Tensor, Tensor, int, Tensor]]:
    """The dominant entries as two rectangles: dominant rows whole, and dominant columns of the other rows.

    Each with how many of its rows lie in the head, and the clusters of its columns there: indices are ascending, so
    the head comes first. Masks come to the CPU once; whatever has their sizes would make an accelerator wait.
    """
    a, b = len(rows), len(cols)
    by_row, by_col = torch.cat([rows, cols]).cpu().split([a, b])
    strips = []
    for row, col in ((by_row, torch.ones_like(by_col)), (~by_row, by_col)):
        indices = [mask.nonzero()[:, 0] for mask in (row, col)]
        heads, head_cols = (int((index < len(labels)).sum()) for index in indices)
        if all(map(len, indices)):
            there_rows, there_cols = (sent(index, rows) for index in indices)
            strips.append((there_rows, there_cols, heads, labels[there_cols[:head_cols]]))
    return strips


def _above(scores: Float[Tensor, "..."], bound: float | Float[Tensor, ""]) -> Bool[Tensor, "..."]:
    """scores > bound. On the CPU numpy makes booleans of numbers five times as quickly."""
    return torch.from_numpy(scores.numpy() > float(bound)) if scores.device.type == "cpu" else scores > bound
