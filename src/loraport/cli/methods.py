"""`loraport methods`: which ways of carrying a LoRA over there are, and their settings."""

from typing import Annotated, Any, Optional

import typer

from loraport.cli.options import Json, Quiet, Verbose
from loraport.cli.voice import Voice

EXAMPLE = """All methods and presets, then the settings of one:

    loraport methods

    loraport methods casa"""


def methods(
    name: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation at run time on every Python
        typer.Argument(metavar="[NAME]", help="A method or preset, for its settings.", show_default=False),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the methods and presets, or the settings of one."""
    from loraport.methods import DEFAULT, registry

    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    if name is not None:
        _show_one(name, voice)
        return
    known = [registry.get(method) for method in registry.names()]
    voice.table(
        ["method", "what it does"],
        [[method.name + (" (default)" if method.name == DEFAULT else ""), method.summary] for method in known],
    )
    voice.table(
        ["preset", "method", "what it sets"],
        [[preset, about.method, about.summary] for preset, about in registry.PRESETS.items()],
    )
    voice.document(
        {
            "methods": [_describe(method) for method in known],
            "presets": {
                preset: {"method": about.method, "summary": about.summary, "values": dict(about.values)}
                for preset, about in registry.PRESETS.items()
            },
        }
    )


def _show_one(name: str, voice: Voice) -> None:
    from loraport.methods import registry

    method, params = registry.resolve(name)
    facts = _describe(method) | {"values": params.model_dump(mode="json")}
    lines = [f"{name}: {method.summary}", f"  reference  {method.reference}", f"  version    {method.version}"]
    if method.Params.__doc__:
        lines += [
            "",
            *(f"  {line.strip()}" for line in method.Params.__doc__.strip().splitlines() if line.strip() != "Args:"),
        ]
    voice.result("\n".join(lines))
    rows = [[f"{method.name}.{key}", str(value)] for key, value in facts["values"].items()]
    voice.table(["setting (change it with --set)", "value"], rows)
    voice.document(facts)


def _describe(method: Any) -> dict[str, Any]:
    return {
        "name": method.name,
        "version": method.version,
        "summary": method.summary,
        "reference": method.reference,
        "settings": method.Params().model_dump(mode="json"),
    }
