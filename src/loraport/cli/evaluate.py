"""`loraport evaluate`: methods x LoRAs x targets on the bundled tiny models, with intervals."""

from pathlib import Path
from typing import Annotated

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.entry import entry
from loraport.cli.options import option
from loraport.wording import count

EXAMPLE = """Reproduce the evidence of docs/evidence.md (under half an hour on two cores), or a quick form (minutes):

    loraport evaluate

    loraport evaluate --quick

Measure one method on one LoRA and target, against direct reuse at all its strengths:

    loraport evaluate --method casa --lora outline --target dmd"""


@entry
def evaluate(
    console: Console,
    output: Annotated[Path, option(
        "--output", "-o", metavar="FOLDER", default=True, help=
            "Folder for the results; samples already there are reused."
    )] = Path("evidence-output"),
    quick: Annotated[bool, option("--quick", help="Use few prompts and the main rows only.")] = False,
    calibrated: Annotated[bool, option(
        "--calibrated", help="Also measure calibration, and what each of its choices is worth."
    )] = False,
    held_out: Annotated[bool, option(
        "--held-out", help="Use the targets and LoRAs that nothing was chosen on, instead of all others."
    )] = False,
    method: Annotated[list[str] | None, option(
        "--method", "-m", metavar="NAME", help="Measure only this method or row. May be repeated."
    )] = None,
    lora: Annotated[list[str] | None, option("--lora", metavar="NAME", help=
        "Measure only this LoRA. May be repeated.")] = None,
    target: Annotated[list[str] | None, option(
        "--target", metavar="NAME", help="Measure only this target. May be repeated."
    )] = None,
    family: Annotated[Path | None, option(
        "--family", metavar="FOLDER", help="Models to use instead of the bundled ones, laid out like them."
    )] = None,
    judge: Annotated[Path | None, option(
        "--judge", metavar="FILE", help="Classifier to use instead of the bundled one."
    )] = None,
    device: Annotated[str, option(
        "--device", metavar="NAME", default=True, help="Device to sample clips on: auto, cpu, cuda, cuda:1 or mps."
    )] = "cpu",
    prompts: Annotated[int | None, option(
        "--prompts", metavar="N", least=2, help="Number of different prompts.", default="64; 16 with --quick"
    )] = None,
    seeds: Annotated[int | None, option(
        "--seeds", metavar="N", least=1, help="Number of starting noises per prompt.", default="2"
    )] = None,
) -> None:  # fmt: skip
    """Measure methods on the tiny models: function, quality and motion, with intervals and controls."""
    from loraport.cli.progress import Progress
    from loraport.engine.devices import pick_devices
    from loraport.evaluate.family import open_family
    from loraport.evaluate.variants import chosen
    from loraport.sampling.folders import need_diffusers

    need_diffusers()
    rows = chosen(method or [], quick=quick, calibrated=calibrated, held_out=held_out)
    members = open_family(family).pick(tuple(target or ()), tuple(lora or ()))
    from loraport.evaluate import tables  # loads torch and diffusers, after all refusals
    from loraport.evaluate.clips import Scale
    from loraport.evaluate.evidence import FULL, QUICK, make_evidence
    from loraport.evaluate.judge import open_judge

    usual = QUICK if quick else FULL
    scale = Scale(prompts=prompts or usual.prompts, seeds=seeds or usual.seeds)
    with Progress(console) as progress:
        done = make_evidence(
            members,
            open_judge(judge, members.source.card.clip),
            rows,
            output,
            scale=scale,
            held_out=held_out,
            device=pick_devices(device)[0],
            on_event=progress,
        )
    lines = [f"{count(len(done.evidence.cells), 'cell')} in {text.duration(done.evidence.seconds)}", ""]
    lines += tables.main_table(done.evidence).splitlines()
    lines += [f"- {note}" for note in done.evidence.notes]
    lines += ["", f"  numbers  {done.numbers}", f"  tables   {done.tables}"]
    lines += [f"  picture  {file}" for file in done.pictures]
    console.result(*lines)
    console.document(done.evidence.to_json() | {"files": {"numbers": str(done.numbers), "tables": str(done.tables)}})
