"""`loraport calibrate`: both models, run on noise, say how strong each part of a LoRA should be on the target."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from loraport.cli import options
from loraport.cli.calibration import SHARED_OPTIONS, SHARED_RECIPE, Job, run_job
from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.errors import UsageError

EXAMPLE = """On the bundled models, offline, about a minute (a LoRA file of your own works the same):

    loraport calibrate outline --source zoo:source --target zoo:step-strong -o outline-calibrated.safetensors

On Wan 1.3B, with prompts that were encoded before (see docs/calibration.md):

    loraport calibrate style.safetensors -s Wan2.1-T2V-1.3B-Diffusers/ -t FastWan2.1-T2V-1.3B-Diffusers/ --prompts prompts.safetensors --latents 5x32x56 --source-steps 30 --source-shift 3 --source-guidance 5 --target-times 1000,757,522 --target-sampler renoise --keep work/ -o style-fast.safetensors"""  # noqa: E501

_FIT, _RUN = "The fit", "Running the models"


def _option(kind: Any, *names: str, panel: str, metavar: str, help: str, shown: str | bool = True) -> Any:
    return Annotated[kind, typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=shown)]


_Lora = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="LORA", help="The LoRA file, or the name of a bundled one.", show_default=False),
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
_SHIFT = "its scheduler's, else 1"
_SourceShift = _option(
    Optional[float],  # noqa: UP045
    "--source-shift", panel=_RUN, metavar="S", help="Time shift of the source.", shown=_SHIFT,
)  # fmt: skip
_SourceGuidance = _option(
    Optional[float],  # noqa: UP045
    "--source-guidance", panel=_RUN, metavar="W", help="Guidance that the source is used with.",
    shown="5; its own if bundled",
)  # fmt: skip
_TargetSteps = _option(
    Optional[int],  # noqa: UP045
    "--target-steps", panel=_RUN, metavar="N", help="Sampling steps of the target.",
    shown=False,
)  # fmt: skip
_TargetShift = _option(
    Optional[float],  # noqa: UP045
    "--target-shift", panel=_RUN, metavar="S", help="Time shift of the target.", shown=_SHIFT,
)  # fmt: skip
_TargetTimes = _option(
    Optional[str],  # noqa: UP045
    "--target-times", panel=_RUN, metavar="T,T,...", help="Or its time steps, from 1000 down.", shown=False,
)  # fmt: skip
_TargetSampler = _option(
    Optional[str],  # noqa: UP045
    "--target-sampler", panel=_RUN, metavar="NAME", help="euler, or renoise (distribution matching).", shown="euler",
)  # fmt: skip
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

_Plot = _option(
    Optional[Path],  # noqa: UP045
    "--plot", panel="Output", metavar="FILE", help="Also draw the diagnosis, as a PNG.", shown=False,
)  # fmt: skip


@command(SHARED_RECIPE, SHARED_OPTIONS, file=True)
def calibrate(
    given: Given,
    console: Console,
    lora: _Lora = None,
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
    source_shift: _SourceShift = None,
    source_guidance: _SourceGuidance = None,
    target_steps: _TargetSteps = None,
    target_shift: _TargetShift = None,
    target_times: _TargetTimes = None,
    target_sampler: _TargetSampler = None,
    batch: _Batch = 16,
    offload: _Offload = False,
    keep: _Keep = None,
    plot: _Plot = None,
) -> None:
    """Fit the strength of each part of a LoRA on the target by running both models on noise. No data, no labels."""
    asked = Given(given.models, {**given.values, **({} if lora is None else {"lora": lora})}).checked()
    for name, value in (("target", asked["target"]), ("output", output)):
        if value is None:
            raise UsageError(f"the {name} is not given", fix=f"--{name}")
    assert output is not None
    device = asked["device"]
    from loraport.calibration.settings import Settings
    from loraport.sampling.denoiser import Schedule
    from loraport.sampling.schedule import RunSettings

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
    own = RunSettings(None, size, device, offload, steps=source_steps, shift=source_shift, guidance=source_guidance)
    sampler, times = _sampler(target_sampler), _times(target_times, target_steps, target_shift)
    if times is None:
        theirs = RunSettings(None, size, device, offload, steps=target_steps, shift=target_shift, sampler=sampler)
    else:
        theirs = RunSettings(Schedule(times, 1.0, sampler or "euler"), size, device, offload)
    job = Job(
        source=asked["source"],
        target=asked["target"],
        prompts=prompts,
        settings=settings,
        run_source=own,
        run_target=theirs,
        to=asked["to"],
        dtype=asked["dtype"],
        overwrite=asked["overwrite"],
        keep=keep,
        plot=plot,
    )
    console.document(run_job(job, asked["lora"], output, console))


def _size(given: str) -> tuple[int, int, int]:
    parts = given.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError("--latents is not understood", values=given, fix="frames x height x width, such as 5x32x56")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _sampler(given: str | None) -> str | None:
    if given not in (None, "euler", "renoise"):
        raise UsageError("unknown sampler", values=given, fix="use euler or renoise")
    return given


def _times(times: str | None, steps: int | None, shift: float | None) -> tuple[float, ...] | None:
    """What --target-times spells out, if it is given, from 1 to 0."""
    if times is None:
        return None
    if steps is not None or shift is not None:
        raise UsageError(
            "--target-times says all the times, so --target-steps and --target-shift contradict it", values=times
        )
    try:
        values = [float(part) / 1000 for part in times.split(",")]
    except ValueError:
        raise UsageError("--target-times is not understood", values=times, fix="such as 1000,757,522") from None
    return (*values, 0.0)
