"""What CASA decides about a layer, and how much of it hangs on the last bits of the decomposition."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.core.thin_svd import rounding
from loraport.methods.casa.arbitration import arbitrated_entries
from loraport.methods.casa.clusters import Clusters, connected_components, edges, redrawn_edges, turns
from loraport.methods.casa.params import CasaParams
from loraport.methods.casa.routing import DriftRouting

_FAR = 0.3  # radians: entries of a direction that is turned as far by rounding are not the same entries


@dataclass(frozen=True)
class Selection:
    """What CASA decides about a layer.

    Args:
        clusters: of the head directions.
        rows: which receivers are dominant.
        cols: which senders are; an entry is dominant if its row or its column is.
        hits: flat indices of the arbitrated entries.
        unsettled: what of this hangs on the last bits of the decomposition.
    """

    clusters: Clusters
    rows: Bool[Tensor, " a"]
    cols: Bool[Tensor, " b"]
    hits: Int[Tensor, " h"]
    unsettled: "Unsettled"


@dataclass(frozen=True)
class Unsettled:
    """Decisions that another decomposition, with other errors of the same size, would take differently.

    Args:
        share: of the routing matrix, entries that would be dominant and are not, or the other way round.
        hits: of the arbitrated entries, those in such rows and columns, and those of a direction that rounding turns
            far.
    """

    share: float
    hits: float


def select(
    C_lora: Float[Tensor, "a b"], drift: DriftRouting, S: Float[Tensor, " p"], k: int, params: CasaParams
) -> Selection:
    """Steps 2, 3 and the selection of step 5 for a head of k directions."""
    clusters = clusters_of(C_lora[:k, :k], S[:k], params.tau)
    rows = dominant(clusters, drift.receivers, params.q_dom, among=C_lora.shape[0])
    cols = dominant(clusters, drift.senders, params.q_dom, among=C_lora.shape[1])
    if params.arbitrate:
        hits = arbitrated_entries(C_lora, drift.C, clusters, rows, cols, params.q_act)
    else:
        hits = torch.empty(0, dtype=torch.int64, device=C_lora.device)
    return Selection(clusters, rows, cols, hits, _unsettled(C_lora[:k, :k], S, drift, params, rows, cols, hits))


def _unsettled(
    C_lora: Float[Tensor, "k k"],
    S: Float[Tensor, " p"],
    drift: DriftRouting,
    params: CasaParams,
    rows: Bool[Tensor, " a"],
    cols: Bool[Tensor, " b"],
    hits: Int[Tensor, " h"],
) -> Unsettled:
    """Takes the decisions once more, on slightly other numbers."""
    k, a, b, error = len(C_lora), len(rows), len(cols), rounding(S)
    clusters = connected_components(redrawn_edges(C_lora, S[:k], params.tau, error))
    other_rows = dominant(clusters, drift.receivers, params.q_dom, a)
    other_cols = dominant(clusters, drift.senders, params.q_dom, b)
    # An entry is nondominant where neither its row nor its column is dominant: count by rectangles.
    pairs = ((rows, cols), (other_rows, other_cols), (rows | other_rows, cols | other_cols))
    first, second, both = torch.stack([(~r).sum() * (~c).sum() for r, c in pairs]).cpu().tolist()
    share = (first + second - 2 * both) / (a * b)
    if not len(hits):
        return Unsettled(share, 0.0)
    far = torch.zeros(max(a, b), dtype=torch.bool, device=S.device)
    far[: len(S)] = turns(S, error)[0] > _FAR
    loose_rows, loose_cols = (rows != other_rows) | far[:a], (cols != other_cols) | far[:b]
    loose = loose_rows[hits // b] | loose_cols[hits % b]
    return Unsettled(share, float(loose.float().mean()))


def clusters_of(C: Float[Tensor, "k k"], S: Float[Tensor, " k"], tau: float) -> Clusters:
    """The directions that an update mixes with each other (Eq. 4)."""
    return connected_components(edges(C, S, tau))


def dominant(clusters: Clusters, density: Tensor, q: float, among: int) -> Tensor:
    """Which of all directions are dominant; those beyond the head never are."""
    marks = torch.zeros(among, dtype=torch.bool, device=density.device)
    marks[: density.numel()] = clusters.dominant(density, q)
    return marks
