"""`loraport verify`: is this file what its header says, and will it load?"""

from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli.options import Adapter, Expert, Json, Model, Quiet, Verbose
from loraport.cli.voice import Voice, error_document, say_error
from loraport.errors import FileError, LoraportError, MismatchError

if TYPE_CHECKING:
    from loraport.adapters.verify import Check

EXAMPLE = """After a copy or a download, and with the model it is meant for:

    loraport verify style-fast.safetensors

    loraport verify style-fast.safetensors --model FastWan2.1-T2V-1.3B/"""
_MARKS = {True: "ok", False: "FAILED", None: "note"}


def verify(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="LoRA files to check.", show_default=False)],
    model: Model = None,
    load: Annotated[
        bool, typer.Option(metavar="", help="Also hand the file to diffusers' own loader, if installed.")
    ] = True,
    expert: Expert = None,
    adapter: Adapter = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check LoRA files: every key known, every number finite, content as the header of a transfer says.

    A note is no failure: something that not every loader takes, in a file that never promised more.
    """
    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    from loraport.adapters.verify import verify_adapter
    from loraport.models.checkpoint import open_checkpoint

    fits = None if model is None else open_checkpoint(model)
    documents, failures = [], []
    for file in files:
        try:
            checks = verify_adapter(file, fits, load=load, expert=expert, adapter=adapter)
        except LoraportError as error:
            documents.append({"path": file, "ok": False, "error": error_document(error)})
            failures.append(error)
            continue
        rows = [f"{check.name:<30} {_MARKS[check.passed]:<8} {check.found}" for check in checks]
        voice.result("\n  ".join([file, *rows]))
        bad = [check for check in checks if check.passed is False]
        rows = [{"name": check.name, "ok": check.passed, "found": check.found} for check in checks]
        documents.append({"path": file, "ok": not bad, "checks": rows})
        if bad:
            failures.append(_failure(file, bad[0]))
    voice.document(documents[0] if len(files) == 1 else {"files": documents})
    for error in failures if not as_json else []:
        say_error(error, as_json=False)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _failure(file: str, check: "Check") -> LoraportError:
    from loraport.adapters.verify import FITS

    if check.name == FITS:
        return MismatchError("the file does not fit the model", where=file, values=check.found)
    return FileError(
        f"the file failed a check: {check.name}",
        where=file,
        values=check.found,
        fix="copy or download it again, or repeat the transfer",
    )
