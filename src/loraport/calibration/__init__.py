"""Calibrated transfer: both models, run on noise, say how strong each part of a LoRA should be on the target.

Weights alone do not say how strongly a LoRA acts in the distilled model. Here the target shows the states it meets,
the source says what the LoRA does there, and gains per group of layers are fitted so that the target does the same;
what is written is an ordinary LoRA with the gains folded in. The equations are in `docs/calibration.md`.

The way in is `loraport.calibrate`; `Denoiser` and `Runnable` plug other inference code in.
"""

from loraport.calibration.report import CalibrationReport
from loraport.calibration.settings import Settings
from loraport.sampling.denoiser import Conditions, Denoiser, Runnable, Schedule
from loraport.sampling.schedule import RunSettings

__all__ = ["CalibrationReport", "Conditions", "Denoiser", "RunSettings", "Runnable", "Schedule", "Settings"]
