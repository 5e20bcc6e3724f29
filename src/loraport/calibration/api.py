"""The public function."""

from collections.abc import Callable, Sequence
from pathlib import Path

from loraport.calibration.report import CalibrationReport
from loraport.calibration.settings import Settings
from loraport.sampling.denoiser import Conditions
from loraport.sampling.pipelines import Model, as_runnable
from loraport.sampling.schedule import NO_SETTINGS, RunSettings

DEFAULTS = Settings()


def calibrate(
    lora: str | Path,
    *,
    source: Model,
    target: Model,
    output: str | Path | None = None,
    prompts: str | Path | Sequence[str] | Conditions | None = None,
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
        source, target: `zoo:NAME`, a bundled model's name, a diffusers folder of Wan; diffusers' own `WanPipeline` or
            `WanTransformer3DModel` in memory, which are used as they are and left as they were; or a `Runnable` of
            your own.
        output: the file to write; None computes and reports only.
        prompts: file of embeddings or of text (see `loraport.sampling.prompts`), a list of texts, or the
            conditions themselves; the bundled models bring their own. Texts need a text encoder: that of the source's
            folder or pipeline, else the target's.
        settings: groups, probes, what is tried; see `Settings`.
        run_source, run_target: time steps, size and device of models that do not say so themselves. A pipeline or a
            folder with a scheduler needs `RunSettings(latents=(5, 32, 56), steps=30)`.
        to, dtype: as in `loraport.transfer`. overwrite: replace an existing file.
        keep: folder for finished parts; the same call then goes on where it was interrupted.
        on_event: told about the progress (objects with `message`, `done`, `total`) and warnings.

    Raises:
        UsageError, MismatchError, FileError, NumericalError: see `loraport.errors`; no output file is left behind.
    """
    from loraport.calibration.run import run_calibration
    from loraport.sampling.prompts import conditions_for
    from loraport.sampling.wan import check_together, is_out_of_memory, out_of_memory

    base = as_runnable(source, run_source, role="source")
    goal = as_runnable(target, run_target, role="target")
    check_together(base, goal)
    try:
        if isinstance(prompts, Conditions):
            conditions = prompts
        else:
            given = Path(prompts) if isinstance(prompts, str) else prompts
            conditions = conditions_for(base, goal, given, seed=settings.seed)
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
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(error) from error
        raise
