"""`loraport verify`: is this file what its header says, and will it load?"""

from typing import Annotated, Any, Optional

import typer

from loraport.cli.options import Json, Quiet, Verbose
from loraport.cli.voice import Voice, error_document, say_error
from loraport.errors import FileError, LoraportError

EXAMPLE = """After a copy or a download, and with the model it is meant for:

    loraport verify style-fast.safetensors

    loraport verify style-fast.safetensors --model FastWan2.1-T2V-1.3B/"""


def verify(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="LoRA files to check.", show_default=False)],
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation at run time on every Python
        typer.Option("--model", metavar="MODEL", help="Also check that it fits this model.", show_default=False),
    ] = None,
    load: Annotated[bool, typer.Option(help="Also hand the file to diffusers' own loader, if installed.")] = True,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check written files: header against content, every number finite, every key one that loaders know."""
    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    from loraport.formats.checkpoint import open_checkpoint

    fits = None if model is None else open_checkpoint(model)
    documents, failures = [], []
    for file in files:
        try:
            checks = _checks(file, fits, load)
        except LoraportError as error:
            documents.append({"path": file, "ok": False, "error": error_document(error)})
            failures.append(error)
            continue
        marks = {True: "ok", False: "FAILED", None: "not checked"}
        voice.result("\n  ".join([file, *(f"{name:<30} {marks[ok]:<12} {found}" for name, ok, found in checks)]))
        rows = [{"name": name, "ok": ok, "found": found} for name, ok, found in checks]
        bad = [row for row in rows if row["ok"] is False]
        documents.append({"path": file, "ok": not bad, "checks": rows})
        if bad:
            failures.append(
                FileError(
                    f"the file failed a check: {bad[0]['name']}",
                    where=file,
                    values=str(bad[0]["found"]),
                    fix="copy or download it again, or repeat the transfer",
                )
            )
    voice.document(documents[0] if len(files) == 1 else {"files": documents})
    for error in failures if not as_json else []:
        say_error(error, as_json=False)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _checks(file: str, model: Any, load: bool) -> list[tuple[str, bool | None, str]]:
    """Name, outcome (None: could not be looked at here) and finding of every check."""
    from loraport.formats.verify import verify_adapter

    checks: list[tuple[str, bool | None, str]] = [
        (check.name, check.passed, check.found) for check in verify_adapter(file, model)
    ]
    if load and all(passed is not False for _, passed, _ in checks):
        checks.append(("diffusers loads it", *_loads(file)))
    return checks


def _loads(file: str) -> tuple[bool | None, str]:
    """Whether the loader of diffusers finds a pair of factors for every layer."""
    try:
        from diffusers.loaders import WanLoraLoaderMixin
    except ImportError:
        return None, "diffusers is not installed"
    from loraport.formats.parse import open_adapter

    adapter = open_adapter(file)
    if adapter.architecture.family.name != "wan":
        return None, f"diffusers has no loader for {adapter.architecture.title}"
    try:
        found = WanLoraLoaderMixin.lora_state_dict(str(adapter.path))
    except (ValueError, KeyError, RuntimeError) as error:
        return False, f"{type(error).__name__}: {error}"
    pairs = sum(key.endswith(".lora_A.weight") for key in found)
    wanted = sum(layer.kind == "lora" for layer in adapter.layers.values())
    return pairs == wanted, f"{pairs} of {wanted} layers"
