"""Calibrated transfer: both models, run on noise, say how a LoRA should be carried over.

Weights alone do not say how strongly a LoRA acts in the distilled model. Here everything that is tried (the LoRA at
several strengths, weight-space methods) makes clips on the target, and the source says how far they are from its own
with the LoRA. What is chosen is a recipe of the engine. The equations are in `docs/calibration.md`.

The way in is `loraport.calibrate`; `Denoiser` and `Runnable` plug other inference code in.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraport.calibration.report import CalibrationReport
    from loraport.calibration.settings import CalibrationSettings
    from loraport.sampling.denoiser import Conditions, Denoiser, Runnable
    from loraport.sampling.schedule import SamplingSettings, Schedule

_HOMES = {
    "CalibrationReport": "loraport.calibration.report",
    "CalibrationSettings": "loraport.calibration.settings",
    "Conditions": "loraport.sampling.denoiser",
    "Denoiser": "loraport.sampling.denoiser",
    "Runnable": "loraport.sampling.denoiser",
    "SamplingSettings": "loraport.sampling.schedule",
    "Schedule": "loraport.sampling.schedule",
}

__all__ = [
    "CalibrationReport",
    "CalibrationSettings",
    "Conditions",
    "Denoiser",
    "Runnable",
    "SamplingSettings",
    "Schedule",
]


def __getattr__(name: str) -> object:
    """Loaded on first use: the command line needs the settings alone, to show its help."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
