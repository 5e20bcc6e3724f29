"""`loraport transfer`: the main job."""

from pathlib import Path

import typer

from loraport.cli import options
from loraport.cli.flags import Flags, output_file, warn_of_name
from loraport.cli.voice import Voice, error_document, say_error
from loraport.errors import Interrupted, LoraportError, UsageError

EXAMPLE = """Carry a LoRA over, and the same with more room for what the distillation took away:

    loraport transfer style.safetensors -s Wan2.1-T2V-1.3B/ -t FastWan2.1-T2V-1.3B/ -o style-fast.safetensors

    loraport transfer style.safetensors -s base.safetensors -t fast.pt --rank energy=0.99 -o style-fast.safetensors

The same command again resumes what was interrupted."""


def transfer(
    loras: options.Loras,
    source: options.Source = None,
    target: options.Target = None,
    target_lora: options.TargetLora = None,
    nested_source: options.NestedSource = None,
    nested_target: options.NestedTarget = None,
    force: options.Force = False,
    expert: options.Expert = None,
    adapter: options.Adapter = None,
    drop: options.Drop = None,
    allow_partial: options.AllowPartial = False,
    method: options.Method = None,
    preset: options.Preset = None,
    settings: options.Set = None,
    amount: options.Amount = 1.0,
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
    flags = Flags(**locals())
    if flags.output is None:
        raise UsageError("the output is not given", fix="name the file to write: -o FILE")
    if len(flags.loras) == 1:
        path = output_file(flags.output, flags.loras[0])
        _transfer_one(flags, flags.loras[0], path, flags.voice)
    else:
        _transfer_many(flags, flags.output)


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


def _transfer_many(flags: Flags, folder: Path) -> None:
    """Several LoRAs into one folder. One that fails does not stop the others; the first failure sets the code."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("several LoRAs need a folder to be written to", values=str(folder), fix="-o FOLDER")
    names = [Path(lora).name for lora in flags.loras]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError("two LoRAs would get the same output name", values=", ".join(twice))
    voice = flags.voice
    inner = Voice(verbose=voice.verbose, quiet=True) if voice.as_json else voice
    rows, documents, failures = [], [], []
    for lora, name in zip(flags.loras, names, strict=True):
        try:
            document = _transfer_one(flags, lora, folder / name, inner)
            facts = document["summary"]
            energy = f"{100 * facts['energy_kept_total']:.1f} %"
            rows.append([name, "done", str(facts["layers"]), f"{facts['rank_in']} -> {facts['rank_out']}", energy])
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
