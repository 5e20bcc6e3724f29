"""`loraport inspect`: what a file is, from its header."""

from typing import Annotated, Any

import typer

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.entry import entry
from loraport.cli.options import argument
from loraport.errors import LoraportError
from loraport.wording import count, size

EXAMPLE = """See which trainer wrote a file, for which model, and whether anything looks odd:

    loraport inspect downloaded.safetensors"""
_KINDS = {"lora": "a LoRA", "checkpoint": "a model", "unknown": "nothing that is known"}
_OF = {"lora": " for ", "checkpoint": ": ", "unknown": " "}
_HEADER = (
    *("modelspec.title", "ss_output_name", "ss_network_module", "loraport.version", "loraport.method"),
    *("loraport.merged", "loraport.resize", "loraport.extract"),
)
_SHOWN = 160  # characters of a header field


@entry
def inspect(
    console: Console,
    files: Annotated[list[str], argument("FILE", "LoRA files or models to describe.")],
) -> None:
    """Describe files: model or LoRA, names, ranks, scales, number format, header, and anything odd."""
    from loraport.adapters.describe import describe

    documents: list[dict[str, Any]] = []
    codes: list[int] = []
    for file in files:
        try:
            facts = describe(file).to_json()
        except LoraportError as error:
            if len(files) == 1:
                raise
            if not console.as_json:
                console.error(error)
            documents.append({"path": file, "error": error.to_json()})
            codes.append(error.exit_code)
            continue
        documents.append(facts)
        codes += [facts["exit_code"]] if facts["exit_code"] else []
        console.result(*_lines(facts, console.verbose))
    console.document(documents[0] if len(files) == 1 else {"files": documents})
    if codes:
        raise typer.Exit(codes[0])  # a file that is described, but would be refused, is no success


def _lines(facts: dict[str, Any], verbose: int) -> list[str]:
    def row(name: str, value: str) -> None:
        if value:
            lines.append(f"  {name:<9} {value}")

    lines = [str(facts["path"])]
    row("what", _KINDS[facts["kind"]] + (f"{_OF[facts['kind']]}{facts['title']}" if facts["title"] else ""))
    row("names", facts["dialect"])
    if facts["layers"]:
        row("layers", f"{facts['layers']} linear layers")
    row("numbers", f"{_counted(facts['dtypes'])}, {size(facts['nbytes'])}")
    row("rank", _counted(facts["ranks"], "layer"))
    if facts["kind"] == "lora" and facts["scales"]:
        row("scale", f"{_counted(facts['scales'], 'layer')}; {text.listing(list(facts['scale_sources']))}")
    row("trained", facts["trained"])
    row("tags", text.listing(facts["training"].get("tags", [])))
    row("remark", facts["training"].get("comment", ""))
    row("besides", text.listing([f"{len(keys)} {kind}" for kind, keys in facts["passthrough"].items()]))
    row("unknown", text.listing(facts["unknown"], most=50 if verbose else 5))
    row("missing", text.listing(facts["missing"], most=50 if verbose else 5))
    for name, value in facts["metadata"].items():
        if verbose or name in _HEADER:
            row("header", f"{name} = {value if len(value) <= _SHOWN or verbose > 1 else value[:_SHOWN] + '...'}")
    for finding in facts["findings"]:
        row("note", finding)
    return [*lines, *text.under("refused", map(str.strip, facts["refused"].splitlines()))]


def _counted(counts: dict[str, int], noun: str = "tensor") -> str:
    return text.listing([f"{value} ({count(number, noun)})" for value, number in counts.items()])
