"""The options that are no field of any settings, each said once. The others are made by `loraport.cli.flags`."""

from typing import Annotated, Optional

import typer

OUTPUT, MESSAGES = "Output", "Messages"
NO_VALUE = ""  # metavar of a switch

Loras = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time on every Python
    typer.Argument(
        metavar="LORA",
        help="LoRA files to carry over; transfer, plan and sweep also take folders of them.",
        show_default=False,
    ),
]
Output = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default=False,
        rich_help_panel=OUTPUT,
        help="The file to write; a folder for several LoRAs.",
    ),
]
Recursive = Annotated[
    bool,
    typer.Option(
        "--recursive",
        metavar=NO_VALUE,
        help="Of a folder of LoRAs also those in the folders inside; outputs keep their paths.",
    ),
]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing", metavar=NO_VALUE, rich_help_panel=OUTPUT, help="Leave LoRAs alone whose output exists."
    ),
]
Model = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", metavar="MODEL", show_default=False, help="Also check that it fits this model."),
]
SourceModel = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--model",
        metavar="MODEL",
        show_default=False,
        help="The model that the LoRA was trained on: needed for DoRA and other kinds that are functions of its "
        "weights; also checks that the LoRA fits it.",
    ),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        metavar=NO_VALUE,
        show_default=False,
        rich_help_panel=MESSAGES,
        help="More detail, such as a table of layers.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", metavar=NO_VALUE, rich_help_panel=MESSAGES, help="Show errors only.")
]
Json = Annotated[
    bool,
    typer.Option("--json", metavar=NO_VALUE, rich_help_panel=MESSAGES, help="Print one JSON document on stdout."),
]


def talk(verbose: Verbose = 0, quiet: Quiet = False, as_json: Json = False) -> None:
    """Not called: its parameters are those of every command."""
