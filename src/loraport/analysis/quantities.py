"""What is told of an update, of directions, and between clusters of them: numbers, short curves and small maps, each
beside its null models. No tensors here.

A *null model* says what the same quantity is where nothing is to be seen:

- `gaussian`: of a random update of the same norm (of the same rank too, where the update is a LoRA);
- `rounding`: of the rounding of the stored number format alone; None where it means nothing: for LoRAs, for float32,
  and for quantised weights.

Singular values and directions are those of the source weight, the largest first. "Send" is about input directions
(columns of the routing matrix), "receive" about output directions (rows), whichever side of the layer is longer.
"""

from dataclasses import dataclass
from typing import Literal

Curve = tuple[float, ...]
Matrix = tuple[tuple[float, ...], ...]
"""Rows of numbers: outputs (receivers) downwards, inputs (senders) to the right."""


@dataclass(frozen=True)
class Measured:
    """A quantity beside its null models.

    Attributes:
        value: measured.
        gaussian: of a random update of the same norm.
        rounding: of the rounding of the stored numbers alone; None where that means nothing.
    """

    value: float
    gaussian: float
    rounding: float | None = None


@dataclass(frozen=True)
class Window:
    """Singular vectors before and after an update, for some neighbouring directions.

    Attributes:
        place: where in the spectrum.
        first: index of the first direction.
        similarity: |<u_i, u'_j>| of the output directions: before downwards, after to the right.
        similarity_gaussian: the same for the null model.
        aligned: mean of |<u_i, u'_i>| over both sides; 1 where nothing moved.
        inside: mean share of the squared length of u'_j that lies in the span of the window's own directions, over
            both sides; 1 where they only mix with each other.
    """

    place: Literal["head", "middle", "tail"]
    first: int
    similarity: Matrix
    similarity_gaussian: Matrix
    aligned: Measured
    inside: Measured


@dataclass(frozen=True)
class Rotation:
    """How far directions leave the span of their neighbours: ||sin Theta||_F / sqrt(d) of groups of d neighbours, the
    mean over both sides.

    Attributes:
        first: index of the first direction of each group.
        measured: from the decomposition of the changed weight.
        predicted: to first order, from the routing matrix alone.
        gaussian: measured for the null model.
    """

    first: tuple[int, ...]
    measured: Curve
    predicted: Curve
    gaussian: Curve


@dataclass(frozen=True)
class Energy:
    """How much of an update's squared norm its best approximation of a rank holds.

    Attributes:
        ranks: which ranks.
        kept: shares.
        gaussian: of the null model.
    """

    ranks: tuple[int, ...]
    kept: Curve
    gaussian: Curve


@dataclass(frozen=True)
class UpdateAnalysis:
    """An update of one weight: the drift from source to target, or a LoRA's.

    Attributes:
        norm: Frobenius norm.
        relative: norm over that of the source weight; `rounding` is what rounding alone would give.
        largest: largest singular value of the update over that of the source weight.
        rank: of a LoRA's factors; None for the drift.
        rigidity: ||S' - S|| / ||S||, the change of the singular values (Eq. 1).
        head_concentration: share of the update's energy in rows and columns of the leading tenth of the head, over the
            share of the area that these have; 1 where it is spread evenly.
        intruders: how many of the ten leading directions after the update have a cosine below 0.5 with every direction
            before it.
        windows: head, middle and tail of the spectrum.
        rotation: of all directions, in groups.
        energy: against rank.
        singular_values: of the changed weight, at `LayerAnalysis.at`.
    """

    norm: float
    relative: Measured
    largest: Measured
    rank: int | None
    rigidity: Measured
    head_concentration: Measured
    intruders: Measured
    windows: tuple[Window, ...]
    rotation: Rotation
    energy: Energy
    singular_values: Curve


@dataclass(frozen=True)
class Densities:
    """How much a cluster sends and receives (Eq. 5, 6): mean norm of its columns, or rows, of the k x k routing matrix
    of the head.

    Attributes:
        send: of each cell of the map.
        receive: the same of rows.
        gaussian: of the null model, the same for all.
        send_rounding: of the rounding of the stored numbers; None where that means nothing.
        receive_rounding: the same of rows.
        map: root mean square of the entries between two cells: receiving downwards, sending to the right.
        map_gaussian: of the null model, the same for all.
    """

    send: Curve
    receive: Curve
    gaussian: float
    send_rounding: Curve | None
    receive_rounding: Curve | None
    map: Matrix
    map_gaussian: float


@dataclass(frozen=True)
class Intervention:
    """What CASA would do with each entry of the routing matrix (Fig. 7 of the paper).

    Attributes:
        restored: share of all entries in which the drift is undone.
        preserved: share in which the drift stays and the LoRA is added.
        arbitrated: share in which only the larger of the two stays.
        drift_undone: share of the drift's energy in the restored entries.
        restored_map: share of each cell; the last row and column stand for all directions beyond the head.
        arbitrated_map: likewise; what is missing to 1 is preserved.
    """

    restored: Measured
    preserved: Measured
    arbitrated: Measured
    drift_undone: Measured
    restored_map: Matrix
    arbitrated_map: Matrix


@dataclass(frozen=True)
class Meeting:
    """Where a LoRA and the drift meet.

    Attributes:
        cosine: of the two updates as a whole; `gaussian` is one standard deviation of it for independent ones.
        head_cosine: of their routing matrices within the head; likewise.
        sign_agreement: share of the entries of the routing matrices that have one sign; `gaussian` is 0.5 and
            `sign_deviation` one standard deviation of it.
        sign_deviation: see there.
        interaction: mean of |C_lora C_drift| between two cells of the map.
        interaction_in_head: share of the sum of |C_lora C_drift| in the leading tenth of the head, over the share of
            the area.
        alignment: cosine of the two within each cell, from -1 to 1.
        alignment_strength: mean of its absolute value over the cells.
        intervention: what CASA would do.
    """

    cosine: Measured
    head_cosine: Measured
    sign_agreement: Measured
    sign_deviation: float
    interaction: Matrix
    interaction_in_head: Measured
    alignment: Matrix
    alignment_strength: Measured
    intervention: Intervention


@dataclass(frozen=True)
class Certificate:
    """One cluster of directions, and how far the drift can have turned it.

    Attributes:
        first: index of its first direction.
        size: number of directions.
        sigma: mean singular value.
        gap: distance of its singular values to all others (and to zero, where the weight is not square).
        bound: what sqrt(||sin Theta_U||^2 + ||sin Theta_V||^2) cannot exceed (Wedin's theorem); None where the drift is
            larger than the gap, so that nothing is certain.
        measured: that quantity.
        predicted: to first order.
    """

    first: int
    size: int
    sigma: float
    gap: float
    bound: float | None
    measured: float
    predicted: float


@dataclass(frozen=True)
class Certificates:
    """Which clusters the drift provably leaves recognisable.

    Attributes:
        clusters: number of clusters.
        certified: how many have a bound below one.
        directions: share of the head's directions in these; `gaussian` for a random drift of the same norm.
        shown: the clusters of the largest singular values.
    """

    clusters: int
    certified: int
    directions: Measured
    shown: tuple[Certificate, ...]


@dataclass(frozen=True)
class Routing:
    """The head of a layer in clusters of directions that an update mixes, and what drift and LoRA do between them.

    Attributes:
        of: whose rotations make the clusters: "drift", or the LoRA's label.
        head: number of directions that hold 90 % of the squared singular values.
        clusters: number of clusters.
        largest: directions in the largest of them.
        cells: directions in each cell of the maps: a cluster, or several neighbouring ones where there are many.
        sigma: mean singular value of each cell.
        drift: densities of the drift.
        lora: densities of the LoRA; None where the clusters are the drift's own.
        certificates: for these clusters under the drift.
    """

    of: str
    head: int
    clusters: int
    largest: int
    cells: tuple[int, ...]
    sigma: Curve
    drift: Densities
    lora: Densities | None
    certificates: Certificates
