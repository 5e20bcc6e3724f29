"""The public function."""

from collections.abc import Callable
from pathlib import Path

from loraport.calibration.denoiser import Runnable
from loraport.calibration.report import CalibrationReport
from loraport.calibration.rollout import Conditions
from loraport.calibration.settings import Settings
from loraport.calibration.wan import NO_SETTINGS, RunSettings, check_together, open_runnable

DEFAULTS = Settings()


def calibrate(
    lora: str | Path,
    *,
    source: str | Path | Runnable,
    target: str | Path | Runnable,
    output: str | Path | None = None,
    prompts: str | Path | Conditions | None = None,
    settings: Settings = DEFAULTS,
    run_source: RunSettings = NO_SETTINGS,
    run_target: RunSettings = NO_SETTINGS,
    to: str = "universal",
    dtype: str = "same",
    overwrite: bool = False,
    keep: str | Path | None = None,
    on_event: Callable[[object], None] = lambda event: None,
) -> CalibrationReport:
    """Fit how strong each part of a LoRA should be on a distilled model, by running both models on noise.

    No data and no labels: prompts, noise from a seed, forward passes. Direct reuse at several strengths and a
    weight-space transfer are among the candidates, so by the measure of the choice (distance of finished clips to
    those of source + LoRA, on held-out noise) the result is never worse than the best of them.

    Args:
        lora: the LoRA file.
        source, target: `zoo:NAME`, a bundled model's name, a diffusers folder of Wan, or a `Runnable` of your own.
        output: the file to write; None computes and reports only.
        prompts: file of embeddings or of text (see `loraport.calibration.prompts`), or the conditions themselves;
            the bundled models bring their own.
        settings: groups, probes, what is tried; see `Settings`.
        run_source, run_target: time steps, size and device of models that do not say so themselves.
        to, dtype: as in `loraport.transfer`. overwrite: replace an existing file.
        keep: folder for finished parts; the same call then goes on where it was interrupted.
        on_event: told about the progress (objects with `message`, `done`, `total`) and warnings.

    Raises:
        UsageError, MismatchError, FileError, NumericalError: see `loraport.errors`; no output file is left behind.
    """
    import torch

    from loraport.calibration.prompts import conditions_for
    from loraport.calibration.run import run_calibration
    from loraport.calibration.wan import out_of_memory

    base = source if isinstance(source, Runnable) else open_runnable(source, run_source, role="source")
    goal = target if isinstance(target, Runnable) else open_runnable(target, run_target, role="target")
    check_together(base, goal)
    if isinstance(prompts, Conditions):
        conditions = prompts
    else:
        conditions = conditions_for(base, goal, None if prompts is None else Path(prompts), seed=settings.seed)
    try:
        return run_calibration(
            Path(lora),
            base,
            goal,
            conditions,
            None if output is None else Path(output),
            settings,
            to=to,
            dtype=dtype,
            overwrite=overwrite,
            keep=None if keep is None else Path(keep),
            listen=on_event,
        )
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error) from error
