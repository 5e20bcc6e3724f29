"""A calibration from the command line, whichever command asks for it: run, draw, tell."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.flags import Given
from loraport.cli.outputs import warn_of_name
from loraport.cli.progress import Progress
from loraport.engine.recipe import Recipe, RunOptions
from loraport.errors import UsageError
from loraport.files import check_apart, check_output

if TYPE_CHECKING:
    from loraport.calibration.settings import Settings
    from loraport.sampling.schedule import RunSettings


@dataclass(frozen=True)
class Job:
    """What to calibrate with: the arguments of `loraport.calibrate`, and where to draw the diagnosis."""

    source: str
    target: str
    prompts: Path | None
    settings: "Settings"
    run_source: "RunSettings"
    run_target: "RunSettings"
    to: str
    dtype: str
    overwrite: bool
    keep: Path | None = None
    plot: Path | None = None


SHARED_RECIPE = Recipe.part("lora", "source", "target", "to", "dtype")
SHARED_OPTIONS = RunOptions.part("device", "overwrite")
"""Settings of `transfer` that say the same to a calibration; whatever else is given with --calibrate is refused."""


def job_of_transfer(given: Given) -> Job:
    """What `transfer --calibrate` amounts to: every dial at its default.

    Raises:
        UsageError: an option that says nothing to a calibration, or a model that does not say how it is run.
        FileError: a model that is not there or no folder.
    """
    shared = SHARED_RECIPE.model_fields.keys() | SHARED_OPTIONS.model_fields.keys()
    idle = [f"--{_SPELT.get(name, name).replace('_', '-')}" for name in sorted(given.values.keys() - shared)]
    if idle:
        raise UsageError(
            "options of a transfer from weights alone say nothing to a calibration", values=", ".join(idle),
            fix="leave them out, or leave out --calibrate; the dials of a calibration: loraport calibrate --help",
        )  # fmt: skip
    from loraport.calibration.settings import Settings
    from loraport.sampling.schedule import RunSettings
    from loraport.sampling.wan import brings_settings

    asked = Given((SHARED_RECIPE, SHARED_OPTIONS), {"lora": "", **given.values}).checked()
    if asked["target"] is None:
        raise UsageError("the target is not given", fix="--target MODEL")
    for role in ("source", "target"):
        spec = asked[role]
        if not brings_settings(spec, role):
            raise UsageError(
                f"the {role} does not say how it is run, and --calibrate runs it", where=spec,
                values="not given: prompts, the size of the probes, time steps",
                fix="use loraport calibrate, which takes them: --prompts FILE --latents 5x32x56 --source-steps 30 "
                "--target-times 1000,757,522",
            )  # fmt: skip
    return Job(
        source=asked["source"],
        target=asked["target"],
        prompts=None,
        settings=Settings(),
        run_source=RunSettings(device=asked["device"]),
        run_target=RunSettings(device=asked["device"]),
        to=asked["to"],
        dtype=asked["dtype"],
        overwrite=asked["overwrite"],
    )


_SPELT = {"params": "set"}  # where the option is not called as its setting


def run_job(job: Job, lora: str, output: Path, console: Console) -> dict[str, Any]:
    """One calibration from start to summary; returns the report as plain values."""
    if job.prompts is not None:
        check_output(output, [("file of prompts", job.prompts)], overwrite=job.overwrite)
    if job.plot is not None:
        _check_plot(job.plot, output, lora, job)
    from loraport.calibration.api import calibrate

    with Progress(console) as progress:
        report = calibrate(
            bundled_lora(lora),
            source=job.source,
            target=job.target,
            output=output,
            prompts=job.prompts,
            settings=job.settings,
            run_source=job.run_source,
            run_target=job.run_target,
            to=job.to,
            dtype=job.dtype,
            overwrite=job.overwrite,
            keep=job.keep,
            on_event=progress,
        )
    if job.plot is not None:
        report.save_plot(job.plot)
    _show(report, job.plot, console)
    warn_of_name(output, console)
    return report.to_json() | ({} if job.plot is None else {"plot": str(job.plot)})


def _check_plot(plot: Path, output: Path, lora: str, job: Job) -> None:
    """What would fail after the run is said before it."""
    from loraport.calibration.plot import check_drawing

    check_drawing()
    if plot.suffix.lower() != ".png":
        raise UsageError("a plot is written as PNG", values=f"--plot {plot}", fix=f"--plot {plot.with_suffix('.png')}")
    inputs = [("file of prompts", job.prompts)] if job.prompts is not None else []
    inputs += [("input LoRA", Path(bundled_lora(lora))), ("source", Path(job.source)), ("target", Path(job.target))]
    check_output(plot, inputs, overwrite=job.overwrite, what="plot")
    check_apart([("output", output), ("plot", plot)])


def _show(report: Any, plot: Path | None, console: Console) -> None:
    ranking = report.choice.ranking
    console.result(report.diagnosis.sentence, "")
    taken = report.choice.chosen
    rows = [
        [each.candidate.label, f"{each.distance:.3f}", f"{each.error:.3f}", "<- taken" if each is taken else ""]
        for each in ranking
    ]
    console.table(
        ["candidate", "gap", "+-", ""], rows, title=f"Gap to source + LoRA on held-out noise: {report.choice.measure}"
    )
    if console.verbose:
        for name, table in (("time", report.diagnosis.steps), ("group", report.diagnosis.groups)):
            if table.before:
                _show_table(name, table, console)
        gains = [[label, f"{value:.2f}"] for label, value in report.coefficients.items()]
        console.table(["coefficient", "value"], gains)
    passes = ", ".join(f"{count} of the {name}" for name, count in report.passes.items())
    lines = [
        f"took {report.chosen}: {report.choice.reason}",
        f"  layers    {report.layers}, rank {report.rank}",
        f"  passes    {passes}, in {text.duration(report.seconds['all'])}",
    ]
    if report.resumed:
        lines.append(f"  resumed   {', '.join(report.resumed)}")
    if report.output is not None:
        size = text.size(report.output.stat().st_size)
        lines.append(f"  output    {report.output}  ({size}, written and read back; use it at strength 1)")
    if plot is not None:
        lines.append(f"  plot      {plot}")
    console.result(*lines)


def _show_table(name: str, table: Any, console: Console) -> None:
    rows = [
        [old.where, *(f"{value:.2f}" for value in (old.share, old.ratio, old.cosine, new.share, new.ratio, new.cosine))]
        for old, new in zip(table.before, table.after, strict=True)
    ]
    columns = [name, "share", "ratio", "cosine", "share after", "ratio after", "cosine after"]
    console.table(columns, rows, title="What the target shows of the source's change")


def bundled_lora(lora: str) -> str:
    """The file of a bundled LoRA, if it is the name of one and no file."""
    from loraport.zoo import catalogue

    name = lora.removeprefix("zoo:")
    if lora.startswith("zoo:") or (not Path(lora).exists() and name in catalogue.loras()):
        return str(catalogue.path(name))
    return lora
