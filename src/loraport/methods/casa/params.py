"""The settings of CASA."""

from typing import Literal

from pydantic import Field

from loraport.methods import base


class CasaParams(base.Params):
    """Switches and thresholds of CASA; the defaults are the paper's.

    Args:
        restore: undo the drift where it does not dominate.
        arbitrate: keep only the larger of update and drift where they collide.
        tau: rotation (radians) above which two head directions belong to one cluster.
        q_dom: quantile over clusters from which a cluster is dominant.
        q_act: quantile over candidate entries above which one is arbitrated.
        head_energy: share of the squared singular values that makes the head.
        density: over the k x k "head" block (the published code) or "full" rows and columns (the paper's text).
        cut_nonsquare: apply head_energy to rectangular layers too; the published code takes all directions there.
        complete_basis: arbitrate also in an arbitrary basis of the null space, as the published code does.
    """

    restore: bool = True
    arbitrate: bool = True
    tau: float = Field(default=0.5, ge=0)
    q_dom: float = Field(default=0.5, ge=0, le=1)
    q_act: float = Field(default=0.85, ge=0, le=1)
    head_energy: float = Field(default=0.9, gt=0, le=1)
    density: Literal["head", "full"] = "head"
    cut_nonsquare: bool = True
    complete_basis: bool = False
