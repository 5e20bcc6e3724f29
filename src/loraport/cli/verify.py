"""`loraport verify`: is this file what its header says, and will it load?"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import Model
from loraport.engine.recipe import Recipe
from loraport.errors import FileError, LoraportError, MismatchError

if TYPE_CHECKING:
    from loraport.adapters.verify import Check

EXAMPLE = """After a copy or a download, and with the model it is meant for:

    loraport verify style-fast.safetensors

    loraport verify style-fast.safetensors --model FastWan2.1-T2V-1.3B/"""
_MARKS = {True: "ok", False: "FAILED", None: "note"}


@command(Recipe.part("expert", "adapter", "architecture"))
def verify(
    given: Given,
    console: Console,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="LoRA files to check.", show_default=False)],
    model: Model = None,
    load: Annotated[
        bool, typer.Option(metavar="", help="Also hand the file to diffusers' own loader, if installed.")
    ] = True,
) -> None:
    """Check LoRA files: every key known, every number finite, content as the header of a transfer says.

    A note is no failure: something that not every loader takes, in a file that never promised more.
    """
    from loraport.adapters.verify import verify_adapter
    from loraport.models.checkpoint import open_checkpoint

    choice = given.checked()
    architecture = choice.pop("architecture")
    fits = None if model is None else open_checkpoint(model, expert=choice["expert"], architecture=architecture)
    documents: list[dict[str, Any]] = []
    failures: list[LoraportError] = []
    for file in files:
        try:
            checks = verify_adapter(file, fits, load=load, **choice)
        except LoraportError as error:
            documents.append({"path": file, "ok": False, "error": error.to_json()})
            failures.append(error)
            continue
        lines = [f"  {check.name:<30} {_MARKS[check.passed]:<8} {check.found}" for check in checks]
        console.result(file, *lines)
        bad = [check for check in checks if check.passed is False]
        rows = [{"name": check.name, "ok": check.passed, "found": check.found} for check in checks]
        documents.append({"path": file, "ok": not bad, "checks": rows})
        if bad:
            failures.append(_failure(file, bad[0]))
    console.document(documents[0] if len(files) == 1 else {"files": documents})
    for failure in failures if not console.as_json else []:
        console.error(failure)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _failure(file: str, check: "Check") -> LoraportError:
    from loraport.adapters.verify import FITS, KEYS

    if check.name == FITS:
        return MismatchError("the file does not fit the model", where=file, values=check.found)
    again = "copy or download it again, or repeat the transfer"
    return FileError(
        f"the file failed a check: {check.name}",
        where=file,
        values=check.found,
        fix=again
        if check.name != KEYS
        else f"of a family that is not known: --architecture any --model MODEL; else {again}",
    )
