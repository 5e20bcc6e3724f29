"""Options of commands that are no field of any settings; those that several commands have are said here, once.

The options that are fields of settings are made by `loraport.cli.flags`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import typer

from loraport.cli.completing import completion_of
from loraport.errors import UsageError

Value = TypeVar("Value")

OUTPUT, MESSAGES = "Output", "Messages"


def option(
    *flags: str,
    help: str,
    metavar: str | None = None,
    panel: str | None = None,
    default: bool | str = False,
    least: int | None = None,
    words: Sequence[str] = (),
) -> Any:
    """An option for typer to read, which completes the names that it takes.

    Args:
        flags: such as `--output` and `-o`.
        help: what it does.
        metavar: what stands for its value; None for a switch, and to list the words that it can be.
        panel: heading of the help under which it stands.
        default: the default in words, or whether its value is shown.
        least: number that it takes.
        words: that its value can be, where they are few and not known by the flag.
    """
    return typer.Option(
        *flags, help=help, metavar=metavar, rich_help_panel=panel, show_default=default, min=least,
        autocompletion=completion_of(flags[0], words),
    )  # fmt: skip


def argument(metavar: str, help: str, *, like: str = "") -> Any:
    """An argument for typer to read.

    Args:
        metavar: what stands for it.
        help: what it is.
        like: the option that takes the same names; "" for files.
    """
    return typer.Argument(metavar=metavar, help=help, show_default=False, autocompletion=completion_of(like))


def required(value: Value | None, name: str, fix: str) -> Value:
    """What a command cannot do without. Raises UsageError."""
    if value is None:
        raise UsageError(f"the {name} is not given", fix=fix)
    return value


Loras = Annotated[
    list[str] | None, argument("LORA", "LoRA files. transfer, plan, sweep and check also take folders of them.")
]
Output = Annotated[
    str | None,
    option(
        "--output", "-o", metavar="FILE", panel=OUTPUT, help="File to write; for several LoRAs, a folder."
    ),
]  # fmt: skip
Recursive = Annotated[bool, option("--recursive", help="Also take LoRAs from subfolders.")]
SkipExisting = Annotated[bool, option("--skip-existing", panel=OUTPUT, help="Skip LoRAs whose output exists.")]
Model = Annotated[str | None, option("--model", metavar="MODEL", help="Also check that the LoRA fits this model.")]
SourceModel = Annotated[
    str | None,
    option(
        "--model", metavar="MODEL",
        help=
            "Model the LoRA was trained on. Needed for DoRA and other kinds that are functions of its weights; "
            "also checks that the LoRA fits it.",
    ),
]  # fmt: skip
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, rich_help_panel=MESSAGES,
        help="Show more detail, such as a table of layers.",
    ),
]  # fmt: skip
Quiet = Annotated[bool, option("--quiet", "-q", panel=MESSAGES, help="Show errors only.")]
Json = Annotated[bool, option("--json", panel=MESSAGES, help="Print one JSON document to stdout.")]


def talk(verbose: Verbose = 0, quiet: Quiet = False, as_json: Json = False) -> None:
    """Not called: its parameters are those of every command."""
