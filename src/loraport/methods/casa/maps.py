"""Where in the spectrum drift and update act, and what CASA decides there: maps over bands of singular directions.

A cell is the block between two bands; what lies outside the thin basis of a rectangular layer is in none.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operator import wide
from loraport.methods.casa.bands import by_band, energy_of, energy_of_factors
from loraport.methods.casa.params import CasaParams
from loraport.methods.casa.routing import DriftRouting
from loraport.methods.casa.selection import Selection
from loraport.methods.maps import MapValues, band_width, bands


@dataclass(frozen=True)
class Looked:
    """What a look at a layer brings to the host, all of it in one copy, so that an accelerator waits once.

    Args:
        rows: dominant receivers.
        cols: dominant senders.
        largest: directions in the largest cluster.
        cells: between every two bands the energy of the drift, that of the update, and the arbitrated entries.
        marked: of every band its dominant receivers and its dominant senders.
        p: directions of the thin basis.
    """

    rows: int
    cols: int
    largest: int
    cells: Float[Tensor, "3 g g"]
    marked: Float[Tensor, "2 g"]
    p: int

    @classmethod
    def at(cls, C_lora: LowRank, K: Float[Tensor, "a p"], drift: DriftRouting, selection: Selection) -> "Looked":
        """One pass over the arbitrated entries, and over K where its rank is so large that its factors are no smaller.

        Args:
            C_lora: the routed update.
            K: the same as a matrix.
            drift: in the same coordinates.
            selection: what was decided.
        """
        p, r = K.shape[1], C_lora.rank
        g, dtype = bands(p), K.dtype
        parts = [
            torch.stack((selection.rows.sum(), selection.cols.sum(), selection.clusters.sizes.max())).to(dtype),
            drift.bands,
            energy_of_factors(C_lora.B[:p], C_lora.A) if 4 * r <= p else energy_of(K),
            _counts(selection.hits, len(K), p).to(dtype),
            *(by_band(marks[:p, None].to(dtype)) for marks in (selection.rows, selection.cols)),
        ]
        sizes, cells, marked = torch.cat([each.reshape(-1) for each in parts]).cpu().split([3, 3 * g * g, 2 * g])
        rows, cols, largest = map(round, sizes.tolist())
        return cls(rows, cols, largest, cells.reshape(3, g, g), marked.reshape(2, g), p)

    def maps(self, shape: tuple[int, int], drift: float, update: float, params: CasaParams) -> dict[str, MapValues]:
        """The values of `Casa.maps`.

        Args:
            shape: of the layer.
            drift: Frobenius norm of the drift.
            update: that of the LoRA's update.
            params: what is not done has no map.
        """
        p = self.p
        sizes = wide(by_band(self.marked.new_ones(p, 1)))[:, 0]
        areas = sizes[:, None] * sizes[None, :]
        # Of a random matrix of the same norm all of these are about 1.
        found = [
            wide(energy) * (shape[0] * shape[1] / norm**2 if norm > 0 else 0.0)
            for energy, norm in zip(self.cells[:2], (drift, update), strict=True)
        ]
        cells = {"drift": (found[0] / areas).sqrt(), "update": (found[1] / areas).sqrt()}
        lines = {
            "sends": torch.stack([(each.sum(0) / (sizes * p)).sqrt() for each in found]),
            "receives": torch.stack([(each.sum(1) / (sizes * p)).sqrt() for each in found]),
        }
        if params.restore:
            left = 1 - wide(self.marked) / sizes
            cells["restored"] = left[0][:, None] * left[1][None, :]
        if params.arbitrate:
            cells["arbitrated"] = wide(self.cells[2]) / areas
        return {key: MapValues.of_rows(each.tolist(), (p, p)) for key, each in cells.items()} | {
            key: MapValues.of_rows(each.tolist(), (len(each), p)) for key, each in lines.items()
        }


def _counts(hits: Int[Tensor, " h"], a: int, p: int) -> Int[Tensor, "g g"]:
    """How many of these flat indices into an a x p matrix lie between every two bands.

    Counted by rows first, so that the threads of an accelerator seldom wait for each other at one number.
    """
    if hits.device.type == "mps":  # which adds up no 64-bit integers before PyTorch 2.9
        return _counts(hits.cpu(), a, p).to(hits.device)
    g, width = bands(p), band_width(p)
    at = hits // width  # where the bands fill a row
    if p % width:
        rows = hits // p
        at = (hits - rows * p) // width + rows * g
    counts = hits.new_zeros(a * g).index_add_(0, at, hits.new_ones(1).expand(len(at)))
    return by_band(counts.reshape(a, g)[:p])
