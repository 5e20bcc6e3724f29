"""The options that commands share, each said once."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from loraport.methods import DEFAULT

_MODELS, _LORA, _METHOD, _OUTPUT = "Models", "LoRA", "Method", "Output"
_MACHINE, _TALK = "Machine", "Messages"
_FLAG = ""  # a switch takes no value, so none is named

Loras = Annotated[list[str], typer.Argument(metavar="LORA", help="LoRA files to carry over.", show_default=False)]
Source = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time on every Python
    typer.Option(
        "--source",
        "-s",
        metavar="MODEL",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Model the LoRA was trained on: a safetensors file, a diffusers folder, or a hub id.",
    ),
]
Target = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--target",
        "-t",
        metavar="MODEL",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Distilled model to carry it to: the same kinds, or a .pt file.",
    ),
]
TargetLora = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--target-lora",
        metavar="FILE[:STRENGTH]",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Instead of --target: the target is the source plus this distillation LoRA.",
    ),
]
NestedSource = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--nested-source",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Part of the source to read: generator or generator_ema of a .pt file, transformer_2 of a folder.",
    ),
]
NestedTarget = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--nested-target",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Part of the target to read, in the same way.",
    ),
]
Model = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", metavar="MODEL", show_default=False, help="Also check that it fits this model."),
]
Expert = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--expert",
        metavar="high|low",
        show_default=False,
        rich_help_panel=_LORA,
        help="Which LoRA of a file that holds those of both Wan2.2 experts.",
    ),
]
Adapter = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--adapter",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_LORA,
        help="Which LoRA of a file that holds several by name.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        metavar=_FLAG,
        rich_help_panel=_MODELS,
        help="Go on although the target does not look derived from the source, or the LoRA was transferred before.",
    ),
]
Method = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--method",
        "-m",
        metavar="NAME",
        show_default=DEFAULT,
        rich_help_panel=_METHOD,
        help="How to carry it over; see `loraport methods`.",
    ),
]
Preset = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--preset",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_METHOD,
        help="A method with settings chosen for it, such as released-code.",
    ),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        show_default=False,
        rich_help_panel=_METHOD,
        help="Change one setting of the method, such as casa.q_dom=0.5. May be repeated.",
    ),
]
Amount = Annotated[
    float,
    typer.Option(
        "--amount", metavar="0..1", rich_help_panel=_METHOD, help="0 is the LoRA reused as it is, 1 the full method."
    ),
]
Strength = Annotated[
    float,
    typer.Option(
        "--strength",
        metavar="X",
        rich_help_panel=_LORA,
        help="Use the whole LoRA this strong, before any method.",
    ),
]
Scale = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--scale",
        metavar="X",
        show_default="what its file says",
        rich_help_panel=_LORA,
        help="The LoRA's own scale, alpha / rank, where its file does not say it or says it wrong.",
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        metavar=_FLAG,
        rich_help_panel=_METHOD,
        help="Fit the strengths by running both models on noise instead; all its dials: `loraport calibrate`.",
    ),
]
Layers = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--layers",
        metavar="REGEX",
        show_default=False,
        rich_help_panel=_METHOD,
        help="Apply the method to layers that match; the others keep their update as it is.",
    ),
]
Drop = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--drop",
        metavar="REGEX",
        show_default=False,
        rich_help_panel=_LORA,
        help="Leave layers and keys that match out of the output.",
    ),
]
AllowPartial = Annotated[
    bool,
    typer.Option(
        "--allow-partial",
        metavar=_FLAG,
        rich_help_panel=_LORA,
        help="Leave out what cannot be matched, instead of refusing.",
    ),
]
Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default=False,
        rich_help_panel=_OUTPUT,
        help="The file to write; a folder when several LoRAs are given.",
    ),
]
Rank = Annotated[
    str,
    typer.Option(
        "--rank",
        "-r",
        metavar="N|same|full|energy=X",
        rich_help_panel=_OUTPUT,
        help="Rank of the output. auto: the input's, at least 32 if the method adds to it. energy=0.99: keeps 99 %.",
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="PROFILE",
        rich_help_panel=_OUTPUT,
        help="Names in the output: universal, diffusers, kohya, original, fastvideo, same-as-input.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        rich_help_panel=_OUTPUT,
        help="Number format of the output: same, float32, bfloat16, float16.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", metavar=_FLAG, rich_help_panel=_OUTPUT, help="Replace the output file if it exists."),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", rich_help_panel=_MACHINE, help="auto, cpu, cuda, cuda:1 or mps.")
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        show_default="by cores and memory",
        rich_help_panel=_MACHINE,
        help="Layers at a time.",
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        "--executor", metavar="NAME", rich_help_panel=_MACHINE, help="How layers run: thread, serial or process."
    ),
]
MaxMemory = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        show_default="60 % of what is free",
        rich_help_panel=_MACHINE,
        help="Memory that the layers in work may take together, such as 16GB.",
    ),
]
Cache = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--cache",
        metavar="DIR|off",
        show_default="$LORAPORT_CACHE or the user's cache folder",
        rich_help_panel=_MACHINE,
        help="Where finished work is kept for the next run.",
    ),
]
Log = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--log",
        metavar="FILE|off",
        show_default="beside the output",
        rich_help_panel=_MACHINE,
        help="The run log, one line a layer.",
    ),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        metavar=_FLAG,
        show_default=False,
        rich_help_panel=_TALK,
        help="More detail, such as a table of layers.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar=_FLAG, rich_help_panel=_TALK, help="Show errors only.")]
Json = Annotated[
    bool, typer.Option("--json", metavar=_FLAG, rich_help_panel=_TALK, help="Print one JSON document on stdout.")
]
