"""`loraport methods`: which ways of carrying a LoRA over there are, and their settings."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from loraport.cli.console import Console
from loraport.cli.entry import entry
from loraport.cli.options import argument

if TYPE_CHECKING:
    from loraport.methods.base import TransferMethod

EXAMPLE = """List all methods and presets, then the settings of one:

    loraport methods

    loraport methods casa"""


@entry
def methods(
    console: Console,
    name: Annotated[str | None, argument("[NAME]", "Method or preset whose settings to show.", like="--method")] = None,
) -> None:
    """List methods and presets, or show the settings of one."""
    from loraport.methods import DEFAULT, registry

    if name is not None:
        _show_one(name, console)
        return
    known = [registry.get(method) for method in registry.names()]
    console.table(
        ["method", "what it does"],
        [[method.name + (" (default)" if method.name == DEFAULT else ""), method.summary] for method in known],
    )
    console.table(
        ["preset", "method", "what it sets"],
        [[preset, about.method, about.summary] for preset, about in registry.presets().items()],
    )
    console.document(
        {
            "methods": [_describe(method) for method in known],
            "presets": {
                preset: {"method": about.method, "summary": about.summary, "values": dict(about.values)}
                for preset, about in registry.presets().items()
            },
        }
    )


def _show_one(name: str, console: Console) -> None:
    from loraport.engine.results import COLUMNS
    from loraport.methods import registry

    method, params = registry.resolve(name)
    facts = _describe(method) | {"values": params.model_dump(mode="json")}
    console.result(f"{name}: {method.summary}", f"  reference  {method.reference}", f"  version    {method.version}")
    meaning = method.Params.described()
    rows = [[f"{method.name}.{key}", str(value), meaning.get(key, "")] for key, value in facts["values"].items()]
    console.table(["setting (change it with --set)", "value", "what it does"], rows)
    columns = [*COLUMNS, *method.columns]
    rows = [[column.key, column.title, column.help] for column in columns]
    console.table(["figure of a layer", "column", "what it says"], rows)
    rows = [[each.key, each.title, each.look] for each in method.maps]
    console.table(["map of a layer", "title", "what to look for"], rows)
    console.document(facts)


def _describe(method: "TransferMethod") -> dict[str, Any]:
    return {
        "name": method.name,
        "version": method.version,
        "summary": method.summary,
        "reference": method.reference,
        "settings": method.Params().model_dump(mode="json"),
        "columns": [asdict(column) for column in method.columns],
        "maps": [each.to_json() for each in method.maps],
    }
