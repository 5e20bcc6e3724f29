"""Checkpoints with part of the drift removed or made stronger, layer by layer, in the target's own layout.

The files are written as a merge writes them: all of them or none. The same command again resumes, and what is not
touched stays bit for bit.
"""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loraport.analysis.plan import make_analysis_plan
from loraport.arguments import check_arguments
from loraport.containers.dtypes import PlainFormat
from loraport.engine.events import Listener, ignore
from loraport.engine.options import RunOptions
from loraport.engine.recipe import recipe_settings
from loraport.errors import UsageError
from loraport.merging.report import MergeReport

if TYPE_CHECKING:
    from torch import Tensor

    from loraport.core.basis import SpectralBasis
    from loraport.methods.casa.routing import DriftRouting

PathLike = str | Path


def remove_drift(
    source: PathLike,
    target: PathLike,
    output: PathLike,
    *,
    quantile: float = 0.5,
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = "auto",
    expert: Literal["high", "low"] | None = None,
    layers: str | None = None,
    requantize: bool = False,
    dequantize: PlainFormat | None = None,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> MergeReport:
    """Write the target without the drift outside its dominant directions (Eq. 22 of the paper).

    Args:
        source: model that the target was made from.
        target: the distilled model, a checkpoint.
        output: file to write for a target in one file, otherwise a folder.
        quantile: quantile of the head directions' densities; directions below it count as non-dominant.
        nested_source: part of the source to read.
        nested_target: part of the target to change.
        architecture: family of the models, if it should not be detected.
        expert: Wan2.2 expert to use, for folders that hold both.
        layers: regular expression; layers that do not match stay as they are.
        requantize: also write fp8 weights, which are rounded again.
        dequantize: format in which other quantised weights are written, as plain numbers.
        options: cache, and `overwrite`.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; existing files under the output's names are then unchanged.
    """
    check_arguments(remove_drift, locals())
    _check_share("quantile", quantile)
    plan = make_analysis_plan([], recipe_settings(locals()))
    record = {"intervention": "remove-drift", "quantile": quantile, "layers": layers}
    from loraport.analysis.interventions import nondominant_drift  # loads torch, after all refusals
    from loraport.analysis.part_of_drift import write

    part = partial(nondominant_drift, q=quantile)
    return write(plan, output, part, -1.0, record, (requantize, dequantize), options or RunOptions(), on_event)


def amplify_head(
    source: PathLike,
    target: PathLike,
    output: PathLike,
    *,
    share: float = 0.05,
    factor: float = 2.0,
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = "auto",
    expert: Literal["high", "low"] | None = None,
    layers: str | None = None,
    requantize: bool = False,
    dequantize: PlainFormat | None = None,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> MergeReport:
    """Write the target with the strongest entries of the drift within the head made stronger (B.2.2 of the paper).

    Args:
        source: model that the target was made from.
        target: the distilled model, a checkpoint.
        output: file to write for a target in one file, otherwise a folder.
        share: share of the entries within the head to amplify, taking those of the largest energy.
        factor: factor for these entries; 1 changes nothing, 0 removes them. The paper does not state its own.
        nested_source: part of the source to read.
        nested_target: part of the target to change.
        architecture: family of the models, if it should not be detected.
        expert: Wan2.2 expert to use, for folders that hold both.
        layers: regular expression; layers that do not match stay as they are.
        requantize: also write fp8 weights, which are rounded again.
        dequantize: format in which other quantised weights are written, as plain numbers.
        options: cache, and `overwrite`.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; existing files under the output's names are then unchanged.
    """
    check_arguments(amplify_head, locals())
    _check_share("share", share)
    if not math.isfinite(factor):
        raise UsageError("the factor must be a finite number", values=f"{factor}", fix="give a factor such as 2")
    plan = make_analysis_plan([], recipe_settings(locals()))
    record = {"intervention": "amplify-head", "share": share, "factor": factor, "layers": layers}
    from loraport.analysis.interventions import strongest_head_blocks  # the same
    from loraport.analysis.part_of_drift import write

    def part(basis: "SpectralBasis", routing: "DriftRouting", drift: object) -> "Tensor":
        return strongest_head_blocks(basis, routing, share)

    return write(plan, output, part, factor - 1.0, record, (requantize, dequantize), options or RunOptions(), on_event)


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"the {name} is a share", values=f"{value:g}", fix=f"give a {name} from 0 to 1")
