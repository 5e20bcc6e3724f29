"""CASA written down densely and naively, in coordinates, with one-hot sums: what the fast code is compared with."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor


@dataclass
class Dense:
    delta: Tensor
    labels: Tensor
    dominant: Tensor
    hit: Tensor


def casa(
    W, drift, update, *, U, S, Vh, k, tau, q_dom, q_act, restore=True, arbitrate=True, density="head", everywhere=False
) -> Dense:
    """U and Vh are square (completed); unless `everywhere`, arbitration is confined to the thin core."""
    m, n = W.shape
    p = min(m, n)
    lora, fft = U.T @ update @ Vh.T, U.T @ drift @ Vh.T
    gap = (S[:k, None] - S[None, :k]).abs() + 1e-6
    edges = (lora[:k, :k].abs() / gap) > tau
    edges.fill_diagonal_(False)
    count, labels = connected_components(edges.numpy(), directed=False)
    labels = torch.from_numpy(labels.astype(np.int64))
    block = fft[:k, :k] if density == "head" else fft
    rx, tx = block[:k].norm(dim=1), block[:, :k].norm(dim=0)
    onehot = torch.nn.functional.one_hot(labels, count).to(W.dtype)
    size = onehot.sum(0) + 1e-6
    mean_rx, mean_tx = onehot.T @ rx / size, onehot.T @ tx / size
    dominant = torch.zeros(m, n, dtype=torch.bool)
    dominant[:k] |= (mean_rx >= torch.quantile(mean_rx, q_dom))[labels][:, None]
    dominant[:, :k] |= (mean_tx >= torch.quantile(mean_tx, q_dom))[labels][None, :]

    def sums(x):
        return onehot.T @ x[:k, :k] @ onehot

    cosine = sums(lora * fft) / (sums(lora**2).sqrt() * sums(fft**2).sqrt() + 1e-8)
    context = torch.ones(m, n, dtype=W.dtype)
    context[:k, :k] = cosine[labels][:, labels]
    score = (lora * fft).abs() * context
    thin = torch.full((m, n), everywhere)
    thin[:p, :p] = True
    candidates = dominant & thin & (lora * fft > 0)
    hit = torch.zeros_like(candidates)
    if arbitrate and candidates.any():
        hit = candidates & (score > torch.quantile(score[candidates], q_act))
    new = torch.where(dominant, lora, lora - fft) if restore else lora.clone()
    new[hit] = torch.where(lora.abs() > fft.abs(), lora, fft)[hit] - fft[hit]
    return Dense(U @ new @ Vh, labels, dominant, hit)
