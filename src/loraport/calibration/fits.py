"""The candidates: what needs no fit, and a fit for every guidance, penalty and family, from one set of moments."""

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from loraport.calibration.candidates import Candidate
from loraport.calibration.directions import Directions
from loraport.calibration.gradient import solve_by_gradient
from loraport.calibration.inputs import Inputs
from loraport.calibration.measure import Answers
from loraport.calibration.moments import Moments
from loraport.calibration.settings import Settings
from loraport.core.lowrank import LowRank
from loraport.engine.recipe import LEAST_RANK
from loraport.sampling.rollout import Stage


def plain_candidates(inputs: Inputs, settings: Settings) -> list[Candidate]:
    made = []
    for strength in settings.strengths:
        label = "direct" if strength == 1 else f"direct x{strength:g}"
        update = {name: term if strength == 1 else term.scaled(strength) for name, term in inputs.update.items()}
        made.append(Candidate(label, "direct", update, {"strength": strength}))
    return made + [Candidate(name, "transfer", update, {"transfer": name}) for name, update in inputs.moved.items()]


def fits(
    stage: Stage | None,
    inputs: Inputs,
    states: Float[Tensor, "t n ..."],
    answers: Answers,
    moments: Moments,
    settings: Settings,
    anchors: Sequence[float],
    *,
    earlier: tuple[Moments, Float[Tensor, " k"]] | None = None,
) -> list[tuple[Candidate, Float[Tensor, " k"]]]:
    """A fit for every family, anchor, guidance and penalty, each with its coefficients.

    Args:
        stage: the target at work; only the gradient solver needs it.
        anchors: strengths of direct reuse that the penalty holds the gains to.
        earlier: for a later round: the first round's moments, whose scale of the penalty is kept, and the coefficients
            around which the new ones were measured.
    """
    directions, start = inputs.directions, inputs.directions.start()
    first, around = (moments, start) if earlier is None else earlier
    round_name = "" if earlier is None else ", again"
    families = {"gains": directions.of_kind("gain")}
    if directions.of_kind("restore"):
        families["gains + restore"] = list(range(len(directions.items)))
    made = []
    for (family, free), strength, w, penalty in itertools.product(
        families.items(), anchors, settings.guidances, settings.penalties
    ):
        anchor = start * strength  # restore shares start at 0, whatever the strength
        if settings.solver == "forward" or family != "gains":
            c = moments.ridge(anchor, guidance=w, penalty=penalty, free=free, around=around, scale=first.scale(free))
        else:
            assert stage is not None
            c = solve_by_gradient(
                stage, directions, states, answers.responses, inputs.probes,
                guidance=w, strength=penalty * first.scale(free), anchor=anchor,
            )  # fmt: skip
        update, kept = _folded(directions, c, inputs)
        about = {
            "family": family,
            "anchor": strength,
            "guidance": w,
            "penalty": penalty,
            "fitted_loss": moments.loss(around, c, w) / max(first.loss(start, start, w), 1e-30),
            "energy_kept": kept,
        }
        held = "" if strength == 1 else f" around x{strength:g}"
        label = f"{family}{held}, w {w:g}, penalty {penalty:g}{round_name}"
        made.append((Candidate(label, "calibrated", update, about), c))
    return made


def _folded(directions: Directions, c: Float[Tensor, " k"], inputs: Inputs) -> tuple[dict[str, LowRank], float]:
    """The update of these coefficients at the rank that is written, and the share of its energy that this keeps."""
    exact = directions.total(c)
    rank = inputs.adapter.max_rank
    if directions.of_kind("restore") and bool((c[directions.of_kind("restore")] != 0).any()):
        rank = max(rank, LEAST_RANK)
    whole = kept = 0.0
    made = {}
    for name, term in exact.items():
        made[name] = term if term.rank <= rank else term.truncated(rank)
        whole += term.norm() ** 2
        kept += made[name].norm() ** 2
    return made, min(kept / whole, 1.0) if whole > 0 else 1.0
