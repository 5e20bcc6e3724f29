"""`loraport calibrate`: both models, run on noise, say how a LoRA should be carried over."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from loraport.calibration.settings import CalibrationSettings
from loraport.cli import options, text
from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import argument, option, required
from loraport.cli.outputs import output_file, warn_of_name
from loraport.cli.sampling import ROLES, sampling_of
from loraport.containers.names import named_path
from loraport.engine.options import RunOptions
from loraport.engine.recipe import OUTPUT, Recipe
from loraport.errors import UsageError
from loraport.sampling.schedule import RUNNING, SamplingSettings
from loraport.wording import count, size
from loraport.writable import check_apart, check_output

if TYPE_CHECKING:
    from loraport.calibration import CalibrationReport

EXAMPLE = """Calibrate on the bundled models, offline, in half a minute (your own LoRA file works the same way):

    loraport calibrate zoo:outline --source zoo:source --target zoo:dmd -o outline-calibrated.safetensors

Calibrate on Wan 1.3B, with prompts encoded beforehand (see docs/calibrating-real-models.md):

    loraport calibrate style.safetensors -s Wan2.1-T2V-1.3B-Diffusers/ -t FastWan2.1-T2V-1.3B-Diffusers/ --prompts prompts.safetensors --latents 5x32x56 --source-steps 30 --source-shift 3 --target-times 1000,757,522 --target-sampler renoise -o style-fast.safetensors

If interrupted, run the same command again to resume."""  # noqa: E501

BOTH = SamplingSettings.part("latents", "offload")
MACHINE = RunOptions.part("device", "cache", "overwrite")
FILES = Recipe.part("lora", "source", "target", "target_lora", "to", "dtype")


@command(FILES, CalibrationSettings, *ROLES.values(), BOTH, MACHINE, file=True)
def calibrate(
    given: Given,
    console: Console,
    lora: Annotated[str | None, argument("LORA", "LoRA file, or zoo:NAME.")] = None,
    output: options.Output = None,
    prompts: Annotated[Path | None, option(
        "--prompts", metavar="FILE", panel=RUNNING,
        help="Prompts: embeddings (safetensors), or text if the source has its text encoder.",
    )] = None,
    plot: Annotated[Path | None, option(
        "--plot", metavar="FILE", panel=OUTPUT, help="Also draw the choice as a PNG."
    )] = None,
    page: Annotated[Path | None, option(
        "--report", metavar="FILE", panel=OUTPUT,
        help="Also write an HTML page: what was tried, what arrives, layer by layer.",
    )] = None,
) -> None:  # fmt: skip
    """Choose method and strength for a LoRA by running both models on noise, without data or labels."""
    asked = given if lora is None else replace(given, values={**given.values, "lora": lora})
    if "lora" not in asked.values:
        raise UsageError("no LoRA is given", fix="name a file or zoo:NAME, before or after the flags")
    files, machine = asked.make(FILES).values(), asked.make(MACHINE).values()
    required(files["target"] or files["target_lora"] or None, "target", "add --target")
    place = output_file(required(output, "output", "add --output"), files["lora"])
    read = [*given.read(), *([] if prompts is None else [("file of prompts", prompts)])]
    if read:
        check_output(place, read, overwrite=machine["overwrite"])
    beside = {what: file for what, file in (("plot", plot), ("page", page)) if file is not None}
    _check_beside(beside, place, files, read, overwrite=machine["overwrite"])
    sampling = sampling_of(asked, {**asked.make(BOTH).values(), "device": machine["device"]})
    from loraport.adapters.opened import open_file
    from loraport.cli.progress import Progress
    from loraport.sampling.folders import find_folder

    for role in ROLES:
        if files[role] is not None:
            find_folder(files[role], role)
    open_file(named_path(files["lora"]))
    from loraport.calibration.api import calibrate as run  # loads torch, after all refusals

    with Progress(console) as progress:
        report = run(
            files["lora"],
            source=files["source"],
            target=files["target"],
            target_lora=files["target_lora"],
            output=place,
            prompts=prompts,
            settings=asked.make(CalibrationSettings),
            source_sampling=sampling["source"],
            target_sampling=sampling["target"],
            to=files["to"],
            dtype=files["dtype"],
            options=RunOptions(**machine),
            on_event=progress,
        )
    if plot is not None:
        report.save_plot(plot)
    if page is not None:
        from loraport.report import write_page

        write_page(page, report.to_json())
    _show(report, beside, console)
    warn_of_name(place, console)
    console.document(report.to_json() | {what: str(file) for what, file in beside.items()})


def _show(report: "CalibrationReport", beside: Mapping[str, Path], console: Console) -> None:
    console.result(report.diagnosis.sentence, "")
    rows = [
        [
            each.label,
            f"{each.gap.value:.3f}",
            f"{each.gap.error:.3f}",
            f"{100 * each.effect.clips.share:.0f} %",
            "<- taken" if each is report.choice.chosen else "",
        ]
        for each in report.choice.ranking
    ]
    console.table(["candidate", "gap", "±", "shown", ""], rows, title=f"Gap to source + LoRA: {report.choice.measure}")
    before, after = report.diagnosis.before.steps, report.diagnosis.after.steps
    if console.verbose and before:
        steps = [
            [old.where, *(f"{value:.2f}" for one in (old, new) for value in (one.share, one.ratio, one.cosine))]
            for old, new in zip(before, after, strict=True)
        ]
        columns = ["time", "share", "ratio", "cosine", "share after", "ratio after", "cosine after"]
        console.table(columns, steps, title="What the target shows of the source's change")
    passes = ", ".join(f"{count} of the {name}" for name, count in report.passes.items())
    lines = [
        f"took {report.chosen}: {report.choice.reason}",
        f"  passes    {passes}, in {text.duration(report.seconds['all'])}",
    ]
    if report.found:
        lines.append(f"  cached    {count(report.found, 'answer')} of an earlier run")
    if report.output is not None:
        written = size(report.output.stat().st_size)
        lines.append(f"  output    {report.output}  ({written}, written and read back; use it at strength 1)")
    lines += [f"  {what:9s} {file}" for what, file in beside.items()]
    console.result(*lines)


def _check_beside(
    beside: Mapping[str, Path],
    output: Path,
    files: dict[str, Any],
    read: list[tuple[str, Path]],
    *,
    overwrite: bool,
) -> None:
    """What would fail after the run is said before it."""
    plot = beside.get("plot")
    if plot is not None:
        from loraport.calibration.plot import check_drawing

        check_drawing()
        if plot.suffix.lower() != ".png":
            raise UsageError("a plot can only be written as PNG", values=f"--plot {plot}", fix="--plot FILE.png")
    from loraport.engine.output import written_files

    named = [(role, files[role]) for role in ("lora", "source", "target") if files[role] is not None]
    named += [("distillation LoRA", each.file) for each in files["target_lora"]]
    inputs = [*read, *((role, Path(file)) for role, file in named)]
    for what, file in beside.items():
        check_output(file, inputs, overwrite=overwrite, what=what)
    check_apart(written_files(output, RunOptions(), beside))
