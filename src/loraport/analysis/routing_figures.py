"""What is told of drift and LoRA between clusters of directions, and of what CASA would do there."""

import torch
from torch import Tensor

from loraport.analysis import certificates, routing_maps, spectrum
from loraport.analysis.coordinates import Coordinates
from loraport.analysis.kept import curve, measured, ratio, short
from loraport.analysis.nulls import Rounding
from loraport.analysis.projected import Layer, Projected, ProjectedLora, Proof
from loraport.analysis.quantities import (
    Certificate,
    Certificates,
    Curve,
    Densities,
    Intervention,
    Meeting,
    Routing,
)
from loraport.core import labelled
from loraport.core.operator import dot, norm
from loraport.methods.casa.arbitration import arbitrated_entries
from loraport.methods.casa.clusters import Clusters
from loraport.methods.casa.selection import dominant

SHOWN = 12
"""Clusters whose certificates are kept."""


def routing_of(
    about: Layer,
    of: str,
    clusters: Clusters,
    drift: Coordinates,
    lora: Coordinates | None,
    noise: Rounding | None,
    proof: Proof,
) -> Routing:
    k, cells = about.k, routing_maps.Cells.of(clusters)
    return Routing(
        of=of,
        head=k,
        clusters=clusters.count,
        largest=int(clusters.sizes.max()),
        cells=tuple(cells.sizes.tolist()),
        sigma=curve(cells.mean(about.S[:k])),
        drift=_densities(about, cells, drift, noise),
        lora=None if lora is None else _densities(about, cells, lora, None),
        certificates=_certificates(about, clusters, proof),
    )


def _densities(about: Layer, cells: routing_maps.Cells, update: Coordinates, noise: Rounding | None) -> Densities:
    m, n = about.shape
    k = about.k
    spread = update.norm / (m * n) ** 0.5

    def both(senders: Tensor, receivers: Tensor) -> tuple[Curve, Curve]:
        sides = (receivers, senders) if about.wide else (senders, receivers)
        return curve(cells.mean(sides[0])), curve(cells.mean(sides[1]))

    send, receive = both(*routing_maps.densities(update.C[:k, :k]))
    rounded = (None, None) if noise is None else both(noise.senders, noise.receivers)
    return Densities(
        send=send,
        receive=receive,
        gaussian=short(spread * k**0.5),
        send_rounding=rounded[0],
        receive_rounding=rounded[1],
        map=about.grid(routing_maps.root_mean_square(update.C[:k, :k], cells)),
        map_gaussian=short(spread),
    )


def _certificates(about: Layer, clusters: Clusters, proof: Proof) -> Certificates:
    S, k = about.S, about.k
    gap = certificates.gaps(S, clusters, square=about.square)
    bound = certificates.bounds(gap, clusters.sizes, proof.size, proof.largest)
    null = certificates.bounds(gap, clusters.sizes, proof.size, spectrum.largest_of_noise(proof.size, about.shape))
    count = min(clusters.count, SHOWN)
    labels = torch.full((len(S),), -1, dtype=torch.int64, device=S.device)
    labels[:k] = torch.where(clusters.labels < count, clusters.labels, -1)
    turned, expected = (each.leaving(labels, count).sqrt() for each in (proof.measured, proof.predicted))
    sigma = labelled.sums(S[:k], clusters.labels, clusters.count) / clusters.sizes
    first = torch.full((clusters.count,), k, dtype=torch.int64, device=S.device)
    first.scatter_reduce_(0, clusters.labels, torch.arange(k, device=S.device), "amin")
    shares = [float(clusters.sizes[each < 1].sum()) / k for each in (bound, null)]
    return Certificates(
        clusters=clusters.count,
        certified=int((bound < 1).sum()),
        directions=measured(*shares),
        shown=tuple(
            Certificate(
                first=int(first[at]),
                size=int(clusters.sizes[at]),
                sigma=short(float(sigma[at])),
                gap=short(float(gap[at])),
                bound=short(float(bound[at])) if bool(bound[at].isfinite()) else None,
                measured=short(float(turned[at])),
                predicted=short(float(expected[at])),
            )
            for at in range(count)
        ),
    )


def meeting_of(layer: Projected, lora: ProjectedLora, clusters: Clusters) -> Meeting:
    about, drift, update = layer.about, layer.drift, lora.update
    (m, n), k, h = about.shape, about.k, about.leading
    cells = routing_maps.Cells.of(clusters)
    mine, theirs = update.C[:k, :k], drift.C[:k, :k]
    agreement, deviation = routing_maps.sign_agreement(update.C, drift.C)
    cosines = routing_maps.alignment(mine, theirs, cells)
    shares = (routing_maps.share_in_first(each, h) for each in ((mine * theirs).abs(), mine.abs()))
    return Meeting(
        cosine=measured(ratio(lora.along, update.norm * drift.norm), (m * n) ** -0.5),
        head_cosine=measured(ratio(dot(mine, theirs), norm(mine) * norm(theirs)), 1 / k),
        sign_agreement=measured(agreement, 0.5),
        sign_deviation=short(deviation),
        interaction=about.grid(routing_maps.interaction(mine, theirs, cells)),
        interaction_in_head=measured(*shares),
        alignment=about.grid(cosines),
        alignment_strength=measured(float(cosines.abs().mean()), routing_maps.alignment_of_noise(cells)),
        intervention=_intervention(layer, lora, clusters, cells),
    )


def _intervention(layer: Projected, lora: ProjectedLora, clusters: Clusters, cells: routing_maps.Cells) -> Intervention:
    """What `methods.casa` decides, and what it would for a random drift. There half of the entries agree in sign, and
    the quantile alone says how many of these are arbitrated."""
    about, drift, params = layer.about, layer.drift, layer.about.params
    (m, n), k = about.shape, about.k

    def marks(receivers: Tensor, senders: Tensor) -> tuple[Tensor, Tensor]:
        return dominant(clusters, receivers, params.q_dom, n), dominant(clusters, senders, params.q_dom, n)

    rows, cols = marks(layer.routing.receivers, layer.routing.senders)
    sent, received = routing_maps.densities(layer.random.C[:k, :k])
    others = marks(received, sent)
    hits = arbitrated_entries(lora.update.C, drift.C, clusters, rows, cols, params.q_act)

    def restored(by_rows: Tensor, by_cols: Tensor) -> float:
        return (m - int(by_rows.sum())) * (n - int(by_cols.sum())) / (m * n)

    dominated = n * n - (n - int(others[0].sum())) * (n - int(others[1].sum()))
    arbitrated = (hits.numel() / (m * n), (1 - params.q_act) * 0.5 * dominated / (m * n))
    shares = (restored(rows, cols), restored(*others))
    undone = float((drift.C.square() * (~rows)[:, None]).sum(0)[~cols].sum() + drift.rest_energy[~cols].sum())
    left_alone = [1 - routing_maps.share_by_cell(each, cells, side) for each, side in ((rows, m), (cols, n))]
    return Intervention(
        restored=measured(*shares),
        preserved=measured(*(1 - share - hit for share, hit in zip(shares, arbitrated, strict=True))),
        arbitrated=measured(*arbitrated),
        drift_undone=measured(ratio(undone, drift.norm**2), shares[1]),
        restored_map=about.grid(left_alone[0][:, None] * left_alone[1][None, :]),
        arbitrated_map=about.grid(routing_maps.hits_by_cell(hits, n, cells, (m, n))),
    )
