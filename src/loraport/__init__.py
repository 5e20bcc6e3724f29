"""loraport: transfer a LoRA from a base diffusion model to its distilled variant, from weights alone.

    import loraport

    report = loraport.transfer("style.safetensors", source="Wan2.1-T2V-1.3B", target="FastWan2.1-1.3B",
                               output="style-fast.safetensors")
    print(report.summary.energy_kept_total, report.layers[0].stats)

Everything here is loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from loraport.errors import LoraportError
from loraport.version import __version__

if TYPE_CHECKING:
    from loraport.adapters.added_lora import AddedLora
    from loraport.adapters.api import convert, inspect, verify
    from loraport.adapters.checks import Check, Verification
    from loraport.adapters.convert import Conversion
    from loraport.adapters.describe import FileDescription
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
    from loraport.calibration.report import CalibrationReport
    from loraport.calibration.settings import CalibrationSettings
    from loraport.checking.api import check
    from loraport.checking.results import CheckResult
    from loraport.comparing.api import compare, probe
    from loraport.comparing.report import CompareReport, ProbeReport
    from loraport.comparing.settings import CompareSettings
    from loraport.engine.experts.asked import Experts
    from loraport.engine.experts.plan import ExpertsPlan
    from loraport.engine.experts.report import ExpertsReport
    from loraport.engine.many.report import ManyReport, Outcome
    from loraport.engine.options import RunOptions
    from loraport.engine.plan import TransferPlan
    from loraport.engine.recipe import Recipe
    from loraport.engine.results import LayerReport, TransferReport
    from loraport.merging.api import merge
    from loraport.merging.report import MergeReport
    from loraport.resizing.api import extract, resize
    from loraport.resizing.report import Resized
    from loraport.sampling.schedule import SamplingSettings
    from loraport.sweeping.api import sweep
    from loraport.sweeping.grid import Grid
    from loraport.sweeping.run import SweepReport

_HOMES = {
    "loraport.api": "transfer plan plan_experts transfer_experts transfer_many list_methods",
    "loraport.analysis.api": "analyze",
    "loraport.analysis.intervening": "amplify_head remove_drift",
    "loraport.analysis.results": "PairAnalysis",
    "loraport.calibration.api": "calibrate",
    "loraport.calibration.report": "CalibrationReport",
    "loraport.calibration.settings": "CalibrationSettings",
    "loraport.checking.api": "check",
    "loraport.checking.results": "CheckResult",
    "loraport.comparing.api": "compare probe",
    "loraport.comparing.report": "CompareReport ProbeReport",
    "loraport.comparing.settings": "CompareSettings",
    "loraport.adapters.api": "inspect convert verify",
    "loraport.adapters.checks": "Check Verification",
    "loraport.adapters.convert": "Conversion",
    "loraport.adapters.describe": "FileDescription",
    "loraport.merging.api": "merge",
    "loraport.merging.report": "MergeReport",
    "loraport.resizing.api": "resize extract",
    "loraport.resizing.report": "Resized",
    "loraport.sampling.schedule": "SamplingSettings",
    "loraport.sweeping.api": "sweep",
    "loraport.sweeping.grid": "Grid",
    "loraport.sweeping.run": "SweepReport",
    "loraport.adapters.added_lora": "AddedLora",
    "loraport.engine.experts.asked": "Experts",
    "loraport.engine.experts.plan": "ExpertsPlan",
    "loraport.engine.experts.report": "ExpertsReport",
    "loraport.engine.many.report": "ManyReport Outcome",
    "loraport.engine.recipe": "Recipe",
    "loraport.engine.options": "RunOptions",
    "loraport.engine.plan": "TransferPlan",
    "loraport.engine.results": "LayerReport TransferReport",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AddedLora",
    "CalibrationReport",
    "CalibrationSettings",
    "Check",
    "CheckResult",
    "CompareReport",
    "CompareSettings",
    "Conversion",
    "Experts",
    "ExpertsPlan",
    "ExpertsReport",
    "FileDescription",
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
    "SamplingSettings",
    "SweepReport",
    "TransferPlan",
    "TransferReport",
    "Verification",
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
    if name not in _HOME_OF:
        raise AttributeError(f"module 'loraport' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
