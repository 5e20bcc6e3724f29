"""`loraport inspect`: what a file is, from its header."""

from typing import Annotated, Any

import typer

from loraport.cli import text
from loraport.cli.options import Json, Quiet, Verbose
from loraport.cli.voice import Voice, error_document, say_error
from loraport.errors import LoraportError

EXAMPLE = """What trainer wrote this, for which model, and does anything look odd?

    loraport inspect downloaded.safetensors"""


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="LoRA files or models.", show_default=False)],
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what files are: model or LoRA, names, ranks, scales, number format, header, and what is odd."""
    from loraport.inspection import inspect as look

    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    documents, failures = [], []
    for file in files:
        try:
            facts = look(file).to_json()
        except LoraportError as error:
            if len(files) == 1:
                raise
            if not as_json:
                say_error(error, as_json=False)
            documents.append({"path": file, "error": error_document(error)})
            failures.append(error)
            continue
        documents.append(facts)
        voice.result("\n".join(_lines(facts, verbose)))
    voice.document(documents[0] if len(files) == 1 else {"files": documents})
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _lines(facts: dict[str, Any], verbose: int) -> list[str]:
    more = facts["facts"]
    lines = [
        str(facts["path"]),
        f"  what      {'a LoRA for' if facts['kind'] == 'lora' else 'a model:'} {facts['title']}",
    ]
    lines.append(f"  names     {more['names']}")
    if facts["kind"] == "lora":
        lines += _lora_lines(more)
    else:
        lines += _model_lines(more)
    if facts["header"] and (verbose or facts["kind"] == "lora"):
        shown = {name: value for name, value in facts["header"].items() if verbose or not name.startswith("loraport.")}
        lines += [f"  header    {name} = {value}" for name, value in shown.items()]
    lines += [f"  note      {finding}" for finding in facts["findings"]] or ["  note      nothing odd"]
    return lines


def _lora_lines(more: dict[str, Any]) -> list[str]:
    ranks = [f"{rank} ({text.count(number, 'layer')})" for rank, number in more["ranks"].items()]
    whole = [f"{text.count(more['full_matrices'], 'whole matrix')}"] if more["full_matrices"] else []
    lines = [
        f"  layers    {more['layers']} from {more['keys']} keys, stored as {more['dtype']}",
        f"  rank      {text.listing([*ranks, *whole])}",
    ]
    lines += [
        f"  scale     {row['scale']:g} in {text.count(row['layers'], 'layer')}: {row['from']}"
        for row in more["scales"][:5]
    ]
    if more["carried"]:
        kinds = [f"{number} {kind}" for kind, number in more["carried"].items()]
        lines.append(f"  besides   {text.listing(kinds)} (carried over unchanged)")
    if "made_by" in more:
        lines.append(f"  made by   {more['made_by']}")
    return lines


def _model_lines(more: dict[str, Any]) -> list[str]:
    dtypes = [f"{number} {dtype}" for dtype, number in more["dtypes"].items()]
    lines = [
        f"  tensors   {more['tensors']} ({text.listing(dtypes)}), {text.size(more['bytes'])} "
        f"in {text.count(more['files'], 'file')}, {more['linear_layers']} linear layers"
    ]
    if "nested" in more:
        lines.append(f"  part      {more['nested']}")
    if more["unknown"]:
        lines.append(f"  extra     {text.listing(more['unknown'])}")
    if more["missing"]:
        lines.append(f"  missing   {text.listing(more['missing'])}")
    return lines
