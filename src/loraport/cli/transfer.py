"""`loraport transfer`: the main job."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import typer

from loraport.cli import options
from loraport.cli.flags import Flags, output_file, warn_of_name
from loraport.cli.voice import Voice, error_document, say_error
from loraport.containers.names import named_path
from loraport.errors import Interrupted, LoraportError, UsageError

EXAMPLE = """Carry a LoRA over, and the same with more room for what the distillation took away:

    loraport transfer style.safetensors -s Wan2.1-T2V-1.3B/ -t FastWan2.1-T2V-1.3B/ -o style-fast.safetensors

    loraport transfer style.safetensors -s base.safetensors -t fast.pt --rank energy=0.99 -o style-fast.safetensors

Fit the strengths by running both models, here the bundled ones (others: loraport calibrate):

    loraport transfer outline -s zoo:source -t zoo:step-strong --calibrate -o outline-calibrated.safetensors

The same command again resumes what was interrupted."""

# typer carries its own copy of click in some versions; this is the class of what it hands over
Context = typer.Context.__mro__[1]


def transfer(
    context: Context,
    loras: options.Loras,
    source: options.Source = None,
    target: options.Target = None,
    target_lora: options.TargetLora = None,
    nested_source: options.NestedSource = None,
    nested_target: options.NestedTarget = None,
    force: options.Force = False,
    expert: options.Expert = None,
    adapter: options.Adapter = None,
    strength: options.Strength = 1.0,
    scale: options.Scale = None,
    drop: options.Drop = None,
    allow_partial: options.AllowPartial = False,
    method: options.Method = None,
    preset: options.Preset = None,
    settings: options.Set = None,
    amount: options.Amount = 1.0,
    calibrate: options.Calibrate = False,
    layers: options.Layers = None,
    output: options.Output = None,
    rank: options.Rank = "auto",
    to: options.To = "universal",
    dtype: options.Dtype = "same",
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workers: options.Workers = None,
    executor: options.Executor = "thread",
    max_memory: options.MaxMemory = None,
    cache: options.Cache = None,
    log: options.Log = None,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Carry LoRAs over from the model they were trained on to its distilled variant."""
    said = dict(locals())
    del said["context"], said["calibrate"]
    flags = Flags(**said)
    if flags.output is None:
        raise UsageError("the output is not given", fix="name the file to write: -o FILE")
    carry = _transfer_one
    if calibrate:
        from loraport.cli.calibration import bundled_lora

        flags = dataclasses.replace(flags, loras=[bundled_lora(lora) for lora in flags.loras])
        carry = _calibrated(flags, context)
    if len(flags.loras) == 1:
        carry(flags, flags.loras[0], output_file(flags.output, flags.loras[0]), flags.voice)
    else:
        _transfer_many(flags, flags.output, carry)


_Carry = Callable[[Flags, str, Path, Voice], dict]


def _calibrated(flags: Flags, context: Context) -> _Carry:
    """A calibration in the place of a transfer. Raises UsageError for options that it would ignore."""
    from loraport.cli.calibration import job_of_transfer, run_job

    given = [name for name in vars(flags) if context.get_parameter_source(name).name == "COMMANDLINE"]
    job = job_of_transfer(flags, given)

    def carry(flags: Flags, lora: str, path: Path, voice: Voice) -> dict:
        document = run_job(job, lora, path, voice)
        voice.document(document)
        return document

    return carry


def _transfer_one(flags: Flags, lora: str, path: Path, voice: Voice) -> dict:
    """One transfer from start to summary; returns the report as plain values."""
    recipe, run_options = flags.recipe(lora), flags.options()
    from loraport.cli.progress import Progress
    from loraport.cli.summary import show_report
    from loraport.engine.plan import make_plan
    from loraport.engine.run import run

    with Progress(voice) as progress:
        plan = make_plan(recipe)
        report = run(plan, path, run_options, progress)
    show_report(report, plan, voice, said=progress.warned)
    warn_of_name(path, voice)
    document = report.to_json()
    voice.document(document)
    return document


def _transfer_many(flags: Flags, folder: Path, carry: _Carry) -> None:
    """Several LoRAs into one folder. One that fails does not stop the others; the first failure sets the code."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("several LoRAs need a folder to be written to", values=str(folder), fix="-o FOLDER")
    names = [named_path(lora).name for lora in flags.loras]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError("two LoRAs would get the same output name", values=", ".join(twice))
    voice = flags.voice
    inner = Voice(verbose=voice.verbose, quiet=True) if voice.as_json else voice
    rows, documents, failures = [], [], []
    for lora, name in zip(flags.loras, names, strict=True):
        try:
            document = carry(flags, lora, folder / name, inner)
            rows.append([name, "done", *_facts(document)])
            documents.append(document)
        except Interrupted:
            raise
        except LoraportError as error:
            if not voice.as_json:
                say_error(error, as_json=False)
            rows.append([name, "failed", "", "", ""])
            documents.append({"lora": lora, "error": error_document(error)})
            failures.append(error)
    voice.table(["LoRA", "outcome", "layers", "rank", "energy kept"], rows)
    voice.document({"reports": documents, "failed": len(failures)})
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _facts(document: dict) -> tuple[str, str, str]:
    """Layers, rank and energy kept, of a transfer or a calibration."""
    if "summary" not in document:
        return str(document["layers"]), str(document["rank"]), f"{100 * document['energy_kept']:.1f} %"
    facts = document["summary"]
    energy = f"{100 * facts['energy_kept_total']:.1f} %"
    return str(facts["layers"]), f"{facts['rank_in']} -> {facts['rank_out']}", energy
