"""`loraport verify`: is this file what its header says, and will it load?"""

from pathlib import Path
from typing import Annotated

import typer

from loraport.cli.options import Json, Quiet, Verbose
from loraport.cli.voice import Voice, error_document, say_error
from loraport.errors import FileError, LoraportError

EXAMPLE = """After a copy or a download:

    loraport verify style-fast.safetensors"""
_MARKS = {True: "ok", False: "FAILED", None: "not checked"}


def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="LoRA files to check.", show_default=False)],
    load: Annotated[bool, typer.Option(help="Also hand the file to diffusers' own loader, if installed.")] = True,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check written files: header against content, every number finite, every key one that loaders know."""
    from loraport.verification import verify as look

    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    documents, failures = [], []
    for file in files:
        try:
            result = look(file, load=load)
        except LoraportError as error:
            documents.append({"path": str(file), "ok": False, "error": error_document(error)})
            failures.append(error)
            continue
        lines = [f"{check.name:<30} {_MARKS[check.ok]:<12} {check.detail}" for check in result.checks]
        voice.result("\n  ".join([str(result.path), *lines]))
        documents.append(result.to_json())
        bad = next((check for check in result.checks if check.ok is False), None)
        if bad is not None:
            failures.append(
                FileError(
                    f"the file failed a check: {bad.name}",
                    where=str(result.path),
                    values=bad.detail,
                    fix="copy or download it again, or repeat the transfer",
                )
            )
    voice.document(documents[0] if len(files) == 1 else {"files": documents})
    for error in failures if not as_json else []:
        say_error(error, as_json=False)
    if failures:
        raise typer.Exit(failures[0].exit_code)
