"""loraport: carry a LoRA from a base diffusion model to its distilled variant, from weights alone.

    import loraport

    report = loraport.transfer("style.safetensors", source="Wan2.1-T2V-1.3B", target="FastWan2.1-1.3B",
                               output="style-fast.safetensors")
    print(report.summary.energy_kept_total, report.layers[0].stats)

Everything here is loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from loraport.version import __version__

if TYPE_CHECKING:
    from loraport.adapters.added_lora import AddedLora
    from loraport.adapters.api import convert, inspect, verify
    from loraport.analysis.api import analyze
    from loraport.analysis.intervening import amplify_head, remove_drift
    from loraport.analysis.results import PairAnalysis
    from loraport.api import (
        list_methods,
        plan,
        plan_experts,
        transfer,
        transfer_experts,
        transfer_many,
    )
    from loraport.calibration.api import calibrate
    from loraport.checking.api import check
    from loraport.checking.results import CheckResult
    from loraport.comparing.api import compare, probe
    from loraport.comparing.probe import ProbeReport
    from loraport.comparing.report import CompareReport
    from loraport.comparing.settings import CompareSettings
    from loraport.engine.experts.asked import Experts
    from loraport.engine.experts.plan import ExpertsPlan
    from loraport.engine.experts.run import ExpertsReport
    from loraport.engine.many.report import ManyReport, Outcome
    from loraport.engine.options import RunOptions
    from loraport.engine.plan import TransferPlan
    from loraport.engine.recipe import Recipe
    from loraport.engine.results import LayerReport, TransferReport
    from loraport.errors import LoraportError
    from loraport.merging.api import merge
    from loraport.merging.run import MergeReport
    from loraport.resizing.api import extract, resize
    from loraport.resizing.cut import Resized
    from loraport.sweeping.api import sweep
    from loraport.sweeping.grid import Grid
    from loraport.sweeping.run import SweepReport

_HOMES = {
    "transfer": "loraport.api",
    "analyze": "loraport.analysis.api",
    "amplify_head": "loraport.analysis.intervening",
    "remove_drift": "loraport.analysis.intervening",
    "PairAnalysis": "loraport.analysis.results",
    "calibrate": "loraport.calibration.api",
    "check": "loraport.checking.api",
    "CheckResult": "loraport.checking.results",
    "compare": "loraport.comparing.api",
    "CompareReport": "loraport.comparing.report",
    "CompareSettings": "loraport.comparing.settings",
    "probe": "loraport.comparing.api",
    "ProbeReport": "loraport.comparing.probe",
    "plan": "loraport.api",
    "plan_experts": "loraport.api",
    "transfer_experts": "loraport.api",
    "transfer_many": "loraport.api",
    "inspect": "loraport.adapters.api",
    "convert": "loraport.adapters.api",
    "verify": "loraport.adapters.api",
    "merge": "loraport.merging.api",
    "MergeReport": "loraport.merging.run",
    "resize": "loraport.resizing.api",
    "extract": "loraport.resizing.api",
    "Resized": "loraport.resizing.cut",
    "sweep": "loraport.sweeping.api",
    "Grid": "loraport.sweeping.grid",
    "SweepReport": "loraport.sweeping.run",
    "list_methods": "loraport.api",
    "AddedLora": "loraport.adapters.added_lora",
    "Experts": "loraport.engine.experts.asked",
    "ExpertsPlan": "loraport.engine.experts.plan",
    "ExpertsReport": "loraport.engine.experts.run",
    "ManyReport": "loraport.engine.many.report",
    "Outcome": "loraport.engine.many.report",
    "Recipe": "loraport.engine.recipe",
    "RunOptions": "loraport.engine.options",
    "TransferPlan": "loraport.engine.plan",
    "LayerReport": "loraport.engine.results",
    "TransferReport": "loraport.engine.results",
    "LoraportError": "loraport.errors",
}

__all__ = [
    "AddedLora",
    "CheckResult",
    "CompareReport",
    "CompareSettings",
    "Experts",
    "ExpertsPlan",
    "ExpertsReport",
    "Grid",
    "LayerReport",
    "LoraportError",
    "ManyReport",
    "MergeReport",
    "Outcome",
    "PairAnalysis",
    "ProbeReport",
    "Recipe",
    "Resized",
    "RunOptions",
    "SweepReport",
    "TransferPlan",
    "TransferReport",
    "__version__",
    "amplify_head",
    "analyze",
    "calibrate",
    "check",
    "compare",
    "convert",
    "extract",
    "inspect",
    "list_methods",
    "merge",
    "plan",
    "plan_experts",
    "probe",
    "remove_drift",
    "resize",
    "sweep",
    "transfer",
    "transfer_experts",
    "transfer_many",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'loraport' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
