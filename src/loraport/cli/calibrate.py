"""`loraport calibrate`: both models, run on noise, say how strong each part of a LoRA should be on the target."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from loraport.cli import options, text
from loraport.cli.voice import Voice
from loraport.errors import UsageError

if TYPE_CHECKING:
    from loraport.calibration.denoiser import Schedule

EXAMPLE = """On the bundled models, offline, about half a minute (a LoRA file of your own works the same):

    loraport calibrate outline --source zoo:source --target zoo:step-strong -o outline-calibrated.safetensors

On Wan 1.3B, with prompts that were encoded before (see docs/calibration.md):

    loraport calibrate style.safetensors -s Wan2.1-T2V-1.3B-Diffusers/ -t FastWan2.1-T2V-1.3B-Diffusers/ --prompts prompts.safetensors --latents 5x32x56 --source-steps 30 --source-shift 3 --source-guidance 5 --target-times 1000,757,522 --target-sampler renoise --keep work/ -o style-fast.safetensors"""  # noqa: E501

_FIT, _RUN = "The fit", "Running the models"


def _option(kind: Any, *names: str, panel: str, metavar: str, help: str, shown: str | bool = True) -> Any:
    return Annotated[kind, typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=shown)]


_Lora = Annotated[
    str, typer.Argument(metavar="LORA", help="The LoRA file, or the name of a bundled one.", show_default=False)
]
_Prompts = _option(
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time on every Python
    "--prompts", panel=_RUN, metavar="FILE", shown=False,
    help="Prompts: embeddings (safetensors), or text beside a source with its text encoder.",
)  # fmt: skip
_Groups = _option(
    str, "--groups", panel=_FIT, metavar="KIND",
    help="Layers that share a gain: global, type, depth, type-depth, layer, component.",
)  # fmt: skip
_Restore = Annotated[
    bool,
    typer.Option(
        "--restore", metavar="", rich_help_panel=_FIT,
        help="Also fit how much of the weight-space transfer each group gets (twice the passes).",
    ),
]  # fmt: skip
_Transfer = _option(
    str, "--transfer", panel=_FIT, metavar="METHODS", help="Weight-space candidates besides direct reuse, or none."
)
_Probes = _option(int, "--probes", panel=_FIT, metavar="N", help="Prompts and noises that the fit sees.")
_Heldout = _option(int, "--heldout", panel=_FIT, metavar="N", help="Others, on which the choice is made.")
_GroupProbes = _option(
    int, "--group-probes", panel=_FIT, metavar="N", help="Probes of the diagnosis by group of layers; 0 leaves it out."
)
_Solver = _option(str, "--solver", panel=_FIT, metavar="NAME", help="forward (passes only) or gradient (small models).")
_Difference = _option(
    Optional[float],  # noqa: UP045
    "--difference", panel=_FIT, metavar="H", help="Size of the differences.", shown="0.1, or 0.25 in 16 bits",
)  # fmt: skip
_Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, rich_help_panel=_FIT, help="Of prompts and noise.")]
_Latents = _option(
    Optional[str],  # noqa: UP045
    "--latents", panel=_RUN, metavar="FxHxW", help="Size of the probes in latents: frames, height, width.", shown=False,
)  # fmt: skip
_SourceSteps = _option(
    Optional[int],  # noqa: UP045
    "--source-steps", panel=_RUN, metavar="N", help="Sampling steps of the source.", shown=False,
)  # fmt: skip
_SourceShift = _option(float, "--source-shift", panel=_RUN, metavar="S", help="Time shift of the source.")
_SourceGuidance = _option(
    float, "--source-guidance", panel=_RUN, metavar="W", help="Guidance that the source is used with."
)
_TargetSteps = _option(
    Optional[int],  # noqa: UP045
    "--target-steps", panel=_RUN, metavar="N", help="Sampling steps of the target, even and shifted.",
    shown=False,
)  # fmt: skip
_TargetShift = _option(float, "--target-shift", panel=_RUN, metavar="S", help="Time shift of the target.")
_TargetTimes = _option(
    Optional[str],  # noqa: UP045
    "--target-times", panel=_RUN, metavar="T,T,...", help="Or its time steps, from 1000 down.", shown=False,
)  # fmt: skip
_TargetSampler = _option(
    str, "--target-sampler", panel=_RUN, metavar="NAME", help="euler, or renoise (distribution matching)."
)
_Batch = _option(int, "--batch", panel=_RUN, metavar="N", help="Clips a pass.")
_Offload = Annotated[
    bool,
    typer.Option(
        "--offload", metavar="", rich_help_panel=_RUN,
        help="Keep the weights on the CPU, a layer at a time on the device."
    ),
]  # fmt: skip
_Keep = _option(
    Optional[Path],  # noqa: UP045
    "--keep", panel=_RUN, metavar="FOLDER", help="Keep finished parts there, and go on from them.", shown=False,
)  # fmt: skip


def calibrate(
    lora: _Lora,
    source: options.Source = None,
    target: options.Target = None,
    output: options.Output = None,
    prompts: _Prompts = None,
    groups: _Groups = "type-depth",
    restore: _Restore = False,
    transfer: _Transfer = "casa,matched-gain",
    probes: _Probes = 32,
    heldout: _Heldout = 32,
    group_probes: _GroupProbes = 4,
    solver: _Solver = "forward",
    difference: _Difference = None,
    seed: _Seed = 0,
    latents: _Latents = None,
    source_steps: _SourceSteps = None,
    source_shift: _SourceShift = 1.0,
    source_guidance: _SourceGuidance = 5.0,
    target_steps: _TargetSteps = None,
    target_shift: _TargetShift = 1.0,
    target_times: _TargetTimes = None,
    target_sampler: _TargetSampler = "euler",
    batch: _Batch = 16,
    device: options.Device = "auto",
    offload: _Offload = False,
    keep: _Keep = None,
    to: options.To = "universal",
    dtype: options.Dtype = "same",
    overwrite: options.Overwrite = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Fit the strength of each part of a LoRA on the target by running both models on noise. No data, no labels."""
    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    for value, name in ((source, "--source"), (target, "--target"), (output, "--output")):
        if value is None:
            raise UsageError(f"the {name.strip('-')} is not given", fix=f"add {name}")
    from loraport.calibration.api import calibrate as run
    from loraport.calibration.denoiser import Schedule
    from loraport.calibration.settings import Settings
    from loraport.calibration.wan import RunSettings
    from loraport.cli.progress import Progress

    settings = Settings(
        groups=groups,
        transfers=() if transfer == "none" else tuple(transfer.split(",")),
        restore=restore,
        probes=probes,
        heldout=heldout,
        group_probes=group_probes,
        solver=solver,
        difference=difference,
        batch=batch,
        seed=seed,
    )
    size = None if latents is None else _size(latents)
    own = None if source_steps is None else Schedule.even(source_steps, shift=source_shift, guidance=source_guidance)
    theirs = _target_schedule(target_steps, target_shift, target_times, target_sampler)
    with Progress(voice) as progress:
        report = run(
            _bundled(lora),
            source=str(source),
            target=str(target),
            output=output,
            prompts=prompts,
            settings=settings,
            run_source=RunSettings(own, size, device, offload),
            run_target=RunSettings(theirs, size, device, offload),
            to=to,
            dtype=dtype,
            overwrite=overwrite,
            keep=keep,
            on_event=progress,
        )
    _show(report, voice)
    voice.document(report.to_json())


def _show(report: Any, voice: Voice) -> None:
    ranking = report.choice.ranking
    voice.result(f"{report.diagnosis.sentence}\n")
    taken = report.choice.chosen
    rows = [
        [each.candidate.label, f"{each.distance:.4f}", f"{each.error:.4f}", "<- taken" if each is taken else ""]
        for each in ranking
    ]
    voice.table(["candidate", "distance", "+-", ""], rows, title="Distance to source + LoRA on held-out noise")
    if voice.verbose:
        for name, table in (("time", report.diagnosis.steps), ("group", report.diagnosis.groups)):
            if table.before:
                _show_table(name, table, voice)
        gains = [[label, f"{value:.2f}"] for label, value in report.coefficients.items()]
        voice.table(["coefficient", "value"], gains)
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
    voice.result("\n".join(lines))


def _show_table(name: str, table: Any, voice: Voice) -> None:
    rows = [
        [old.where, *(f"{value:.2f}" for value in (old.share, old.ratio, old.cosine, new.share, new.ratio, new.cosine))]
        for old, new in zip(table.before, table.after, strict=True)
    ]
    columns = [name, "share", "ratio", "cosine", "share after", "ratio after", "cosine after"]
    voice.table(columns, rows, title="What the target shows of the source's change")


def _bundled(lora: str) -> str:
    """The file of a bundled LoRA, if it is the name of one and no file."""
    from loraport.zoo import catalogue

    name = lora.removeprefix("zoo:")
    if lora.startswith("zoo:") or (not Path(lora).exists() and name in catalogue.loras()):
        return str(catalogue.path(name))
    return lora


def _size(given: str) -> tuple[int, int, int]:
    parts = given.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError("--latents is not understood", values=given, fix="frames x height x width, such as 5x32x56")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _target_schedule(steps: int | None, shift: float, times: str | None, sampler: str) -> "Schedule | None":
    from loraport.calibration.denoiser import Schedule

    if sampler not in ("euler", "renoise"):
        raise UsageError("unknown sampler", values=sampler, fix="use euler or renoise")
    if times is not None and steps is not None:
        raise UsageError("--target-times and --target-steps contradict each other")
    if times is not None:
        try:
            values = [float(part) / 1000 for part in times.split(",")]
        except ValueError:
            raise UsageError("--target-times is not understood", values=times, fix="such as 1000,757,522") from None
        return Schedule((*values, 0.0), 1.0, sampler)
    if steps is not None:
        even = Schedule.even(steps, shift=shift)
        return Schedule(even.times, 1.0, sampler)
    return None
