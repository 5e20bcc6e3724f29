"""Does the drift lean on the strongest directions? Its energy in the first tenth of them, against drifts that mean
nothing.

Every layer's drift is computed in float32 from the two checkpoints and routed, C = U^T drift V. The share of ||C||^2 in
the first tenth is set against its share of the area, for the drift itself and for three null models. (The head of an
analysis is another set, the directions that hold 90 % of the squared singular values.)

- a Gaussian drift of the same norm;
- the published pipeline with no drift at all: the source minus itself, rebuilt from bf16 factors of its SVD;
- the true drift taken from the rounding of bfloat16 weights only (source minus its bf16 round trip), if there is any.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.thin_svd import thin_svd
from loraport.evaluate.family import Family, Model
from loraport.evaluate.networks import load_network

FIRST = 0.1
"""Share of all directions that is meant, rows and columns together (the paper's L shape)."""


@dataclass(frozen=True)
class Concentration:
    """One layer.

    Attributes:
        layer: name.
        relative: norm of the drift over the norm of the weight.
        area: share of the entries that lie in the rows and columns of the first tenth.
        shares: energy in these over their area, by kind of drift; 1 is no concentration.
        rigidity: relative change of the vector of singular values, by kind of drift (Eq. 1 of the paper).
    """

    layer: str
    relative: float
    area: float
    shares: Mapping[str, float]
    rigidity: Mapping[str, float]


def concentrations(family: Family, target: Model) -> list[Concentration]:
    """Every attention and feed-forward matrix of a target."""
    source = _matrices(load_network(family, family.source).state_dict())
    moved = _matrices(load_network(family, target).state_dict())
    return [concentration(name, W, moved[name]) for name, W in source.items()]


def concentration(
    name: str, W: Float[Tensor, "m n"], W_target: Float[Tensor, "m n"], *, seed: int = 0
) -> Concentration:
    """One layer; see `Concentration`."""
    drift = W_target - W
    basis = thin_svd(W, name=name)
    noise = torch.randn(W.shape, generator=Generator().manual_seed(seed))
    factors = (part.bfloat16().float() for part in (basis.U, basis.S, basis.Vh))
    U, S, Vh = factors
    kinds = {
        "drift": drift,
        "gaussian": noise * (drift.norm() / noise.norm()),
        "bf16 factors": (U * S) @ Vh - W,
        "bf16 weights": W.bfloat16().float() - W,
    }
    top = max(1, round(FIRST * len(basis.S)))
    m, n = W.shape
    area = 1 - (m - top) * (n - top) / (m * n)
    kinds = {kind: D for kind, D in kinds.items() if float(D.norm()) > 0}
    return Concentration(
        layer=name,
        relative=float(drift.norm() / W.norm()),
        area=area,
        shares={kind: share_of_first(basis, D, top) / area for kind, D in kinds.items()},
        rigidity={
            kind: float((torch.linalg.svdvals(W + D) - basis.S).norm() / basis.S.norm())
            for kind, D in kinds.items()
            if kind in ("drift", "gaussian")
        },
    )


def share_of_first(basis: SpectralBasis, drift: Float[Tensor, "m n"], top: int) -> float:
    """Share of ||drift||^2 that the first `top` receivers and senders hold.

    Outside them is (I - U U^T) drift (I - V V^T) for their U and V, so no null-space basis is needed.
    """
    U, Vh = basis.U[:, :top].double(), basis.Vh[:top].double()
    rest = drift.double()
    rest = rest - U @ (U.T @ rest)
    rest = rest - (rest @ Vh.T) @ Vh
    return 1 - float(rest.square().sum() / drift.double().square().sum())


def summary(layers: list[Concentration]) -> dict[str, dict[str, float]]:
    """Means over layers with standard errors, by quantity."""
    columns: dict[str, list[float]] = {"relative drift": [layer.relative for layer in layers]}
    for layer in layers:
        for kind, value in layer.shares.items():
            columns.setdefault(f"energy in the first tenth, {kind}", []).append(value)
        for kind, value in layer.rigidity.items():
            columns.setdefault(f"rigidity, {kind}", []).append(value)
    return {name: _mean_and_error(values) for name, values in columns.items()}


def _mean_and_error(values: list[float]) -> dict[str, float]:
    x = torch.tensor(values, dtype=torch.float64)
    error = x.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": x.mean().item(), "error": error, "layers": len(values)}


def _matrices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices that LoRAs act on, by name."""
    wanted = (".attn1.", ".attn2.", ".ffn.")
    return {
        name: value.float() for name, value in state.items() if value.ndim == 2 and any(part in name for part in wanted)
    }
