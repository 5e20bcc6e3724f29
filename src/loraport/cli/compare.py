"""`loraport compare`: the same prompts and seeds on both models, with and without the LoRA."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import option, required
from loraport.cli.sampling import OF_PIPELINES, sampling_of
from loraport.comparing.settings import CLIPS, CompareSettings
from loraport.engine.experts.asked import Experts
from loraport.engine.options import RunOptions
from loraport.engine.recipe import MODELS, OUTPUT, Recipe
from loraport.errors import UsageError
from loraport.settings import Setting, Settings
from loraport.wording import count

if TYPE_CHECKING:
    from loraport.comparing.report import CompareReport

EXAMPLE = """See what becomes of a LoRA, on the prompts of a file and three seeds (docs/measures.md explains each number):

    loraport compare --source Z-Image/ --target Z-Image-Turbo/ --lora style.safetensors --transferred style-turbo.safetensors --strengths 0.75,1,1.25 --prompts prompts.txt --seeds 3 -o compared/

Use the source with a distillation LoRA as the target:

    loraport compare --source Wan2.1-T2V-14B-Diffusers/ --target-lora lightx2v.safetensors:1 --target-steps 4 --target-shift 5 --target-guidance 1 --lora style.safetensors --prompts prompts.txt --frames 33 --offload model -o compared/

Compare both experts of Wan2.2, with what `transfer --expert both` wrote (the low-noise file of each pair lies beside the other):

    loraport compare --source Wan2.2-T2V-A14B-Diffusers/ --target fast/ --target-steps 4 --target-guidance 1 --lora style_high_noise.safetensors --transferred style-fast_high_noise.safetensors --prompts prompts.txt --offload model -o compared/

Compare image-to-video models on every image of a folder, each with the text beside it (cat.txt for cat.png):

    loraport compare --source Wan2.2-I2V-A14B-Diffusers/ --target-lora lightx2v_high_noise.safetensors:1 --target-lora-low lightx2v_low_noise.safetensors:1 --lora style_high_noise.safetensors --image first-frames/ --offload model -o compared/

The same command again makes what is missing."""  # noqa: E501

FILES = Recipe.part("source", "target", "target_lora")


class Pipelines(Settings):
    """How the models are explained where they are run: as `FILES` says, but for the help."""

    source: Annotated[str | None, Setting(
        "Model the LoRA was trained on: a diffusers folder with text encoder, scheduler and VAE, or a hub id.",
        "--source", "-s", panel=MODELS, metavar="MODEL", path=True,
    )] = None  # fmt: skip
    target: Annotated[str | None, Setting(
        "Target model, of the same family: such a folder, or its transformer alone (a folder or file).",
        "--target", "-t", panel=MODELS, metavar="MODEL", path=True,
    )] = None  # fmt: skip


LOW = Experts.part("lora_low", "target_lora_low")
MACHINE = RunOptions.part("device")
SHOWN = ("frame_difference", "colour", "distance", "ssim", "first_frame")
"""Measures of the short table; the page has them all."""


@command(FILES, Pipelines, LOW, CompareSettings, *OF_PIPELINES, MACHINE)
def compare(
    given: Given,
    console: Console,
    lora: Annotated[str | None, option("--lora", metavar="FILE", panel=MODELS, help="LoRA to compare.")] = None,
    transferred: Annotated[list[str] | None, option(
        "--transferred", metavar="FILE", panel=MODELS,
        help="Transferred version of the LoRA for the target. May be repeated.",
    )] = None,
    transferred_low: Annotated[list[str] | None, option(
        "--transferred-low", metavar="FILE", panel=MODELS,
        help=
            "Transferred version for the low-noise expert, in the order of --transferred. Without it, the file "
            "beside it with a matching name.",
    )] = None,
    prompts: Annotated[Path | None, option(
        "--prompts", metavar="FILE", panel=CLIPS,
        help="Prompts: text, one per line; or JSON lines (.jsonl) with prompt and image.",
    )] = None,
    prompt: Annotated[list[str] | None, option(
        "--prompt", metavar="TEXT", panel=CLIPS, help="A prompt itself. May be repeated."
    )] = None,
    image: Annotated[list[str] | None, option(
        "--image", metavar="FILE", panel=CLIPS,
        help=
            "First image for clips of image-to-video models, or a folder of images: one per prompt in the same "
            "order, one for all, or several for a single prompt. May be repeated.",
    )] = None,
    output: Annotated[Path | None, option(
        "--output", "-o", metavar="FOLDER", panel=OUTPUT, help="Folder for the page, numbers and clips."
    )] = None,
) -> None:  # fmt: skip
    """Make the same clips with source and target, with and without the LoRA, and show them on one page."""
    lora, output = required(lora, "LoRA", "add --lora FILE"), required(output, "output", "add -o FOLDER")
    given_prompts = prompts or prompt or None
    required(given_prompts or image or None, "prompt", "add --prompt TEXT, or --prompts FILE")
    if prompts is not None and prompt:
        raise UsageError(
            "prompts are given twice", values=f"--prompts {prompts}, and --prompt", fix="use only one of the two"
        )
    files, low = given.make(FILES).values(), given.make(LOW).values()
    sampling = sampling_of(given)
    from loraport.cli.progress import Progress
    from loraport.comparing.api import compare as run

    with Progress(console) as progress:
        report = run(
            lora,
            source=files["source"],
            target=files["target"],
            target_lora=files["target_lora"],
            transferred=transferred or (),
            lora_low=low["lora_low"],
            target_lora_low=low["target_lora_low"],
            transferred_low=transferred_low or (),
            output=output,
            prompts=given_prompts,
            images=image or (),
            settings=given.make(CompareSettings),
            source_sampling=sampling["source"],
            target_sampling=sampling["target"],
            device=given.make(MACHINE).values()["device"],
            on_event=progress,
        )
    _show(report, console)
    console.document(report.to_json())


def _show(report: "CompareReport", console: Console) -> None:
    measures = [one for one in report.measures if one.key in SHOWN]
    rows = []
    for variant in report.variants:
        scores = report.scores[variant.key]
        rows.append(
            [
                variant.label,
                *(f"{scores[m.key].mean:.{m.digits}f}" if m.key in scores else "" for m in measures),
            ]
        )
    console.table(["", *(one.title for one in measures)], rows, title="Against source + LoRA; the page has all numbers")
    console.result(
        f"compared {count(len(report.variants), 'variant')} on {count(len(report.prompts), 'prompt')} "
        f"and {count(report.seeds, 'seed')} each",
        f"  clips     {report.made} made, {report.found} were there",
        *([f"  sampling  of the target: {report.known}"] if report.known else []),
        f"  page      {report.page}",
    )
