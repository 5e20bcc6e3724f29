"""`loraport check`: does a LoRA work on a model as it is, before anything is made."""

from pathlib import Path
from typing import Annotated, Any

import typer

from loraport.checking.results import EXIT_CODES, CheckResult, Quantity
from loraport.cli import options, text
from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import option
from loraport.cli.outputs import asked_loras
from loraport.engine.many.asked import holds_many
from loraport.engine.options import RunOptions
from loraport.engine.recipe import OUTPUT, Recipe
from loraport.errors import LoraportError, UsageError
from loraport.wording import count
from loraport.writable import check_output

EXAMPLE = f"""Find out whether LoRAs work on a target, and at which strength:

    loraport check style.safetensors --source Wan2.1-T2V-1.3B/ --target FastWan2.1-T2V-1.3B/

    loraport check *.safetensors -s base.safetensors --target-lora lightning.safetensors:0.8

Exit codes: {", ".join(f"{code} {verdict}" for verdict, code in EXIT_CODES.items())}; for several LoRAs, the highest.
Errors keep their own codes: 2 usage, 4 a weight holds NaN, 5 files."""

_MACHINE = RunOptions.part("device", "workers", "max_memory", "overwrite")


@command(Recipe, _MACHINE, without=("force", "allow_partial", "amount", "layers", "rank", "to", "dtype"))
def check(
    given: Given,
    console: Console,
    deep: Annotated[bool, option("--deep", help="Look at every layer instead of a sample.")] = False,
    recursive: options.Recursive = False,
    page: Annotated[Path | None, option(
        "--report", metavar="FILE", panel=OUTPUT,
        help=
            "Also write an HTML page with the verdict and every figure beside its null, layer by layer (one LoRA "
            "only).",
    )] = None,
) -> None:  # fmt: skip
    """Tell whether a LoRA works on a model, and why: use as is, use at a strength, convert, or cannot help."""
    loras = list(given.loras)
    if any(holds_many(lora, recursive=recursive) for lora in loras):
        loras = [each.lora for each in asked_loras(loras, Path(), console, recursive=recursive)]
    recipes, machine = [given.recipe(lora) for lora in loras], given.make(_MACHINE).values()
    overwrite = machine.pop("overwrite")
    if page is not None:
        _check_page(page, recipes, overwrite=overwrite)
    from loraport.checking.run import check_recipes

    found = check_recipes(recipes, RunOptions(**machine), deep=deep)
    errors = [each for each in found if isinstance(each, LoraportError)]
    if len(found) == 1:
        if errors:
            raise errors[0]
        (result,) = (each for each in found if isinstance(each, CheckResult))
        if page is not None:
            from loraport.report.check_page import write_check_page

            write_check_page(page, result)
        show(result, console)
        if page is not None:
            console.result(f"  page      {page}")
        console.document(result.to_json() | ({} if page is None else {"page": str(page)}))
        raise typer.Exit(result.exit_code)
    console.errors(errors)
    show_many(loras, found, console)
    documents = [each.to_json() if isinstance(each, CheckResult) else {"error": each.to_json()} for each in found]
    console.document({"checks": documents, "failed": len(errors)})
    codes = [each.exit_code for each in found if isinstance(each, CheckResult)]
    raise typer.Exit(errors[0].exit_code if errors else max(codes))


def _check_page(page: Path, recipes: list[Recipe], *, overwrite: bool) -> None:
    """What would fail after the look is said before it."""
    if len(recipes) > 1:
        raise UsageError("a page describes one LoRA", values=f"{len(recipes)} LoRAs", fix="leave out --report")
    recipe = recipes[0]
    named = [("lora", recipe.lora), ("source", recipe.source), ("target", recipe.target)]
    named += [("distillation LoRA", each.file) for each in (*recipe.target_lora, *recipe.source_lora)]
    inputs = [(role, Path(file)) for role, file in named if file is not None]
    check_output(page, inputs, overwrite=overwrite, what="page")


def show(result: CheckResult, console: Console) -> None:
    """A verdict for people."""
    facts = result.coverage
    target = result.target or "the source"
    lines = [
        result.lora,
        f"  verdict   {result.verdict.upper()}" + (f" {result.strength:g}" if _says_strength(result) else ""),
        f"            {result.headline}",
    ]
    lines += text.under("because", (reason.text for reason in result.reasons))
    if result.command:
        lines.append(f"  run       {result.command}")
    lines += text.under("load", result.load)
    if result.target_known is not None and result.load:
        lines += text.under("sample", (f"{program}: {way}" for program, way in result.target_known.ways.items()))
    lines.append(f"  from      {_model(result.source_title, result.source)}")
    added = "".join(f" plus {each}" for each in result.target_lora)
    lines.append(f"  to        {_model(result.target_title, target)}{added}")
    lines += [f"  made by   {result.kind.name}: {result.kind.sentence}"] if result.kind else []
    if facts is not None:
        lines.append(
            f"  coverage  {facts.met} of {count(facts.layers, 'layer')} of the LoRA found in the target; "
            f"{count(facts.kept, 'other key')} kept, {len(facts.dropped) or 'none'} dropped"
        )
    if result.layers:
        decomposed = sum("head_lora" in layer.figures for layer in result.layers)
        lines.append(
            f"  looked at {len(result.layers)} of {count(result.layers_of, 'layer')}, {decomposed} of them "
            f"decomposed, in {text.duration(result.seconds)}"
        )
    else:
        lines.append(f"  looked at headers only, in {text.duration(result.seconds)}")
    lines += [f"  known     {each}" for each in result.known]
    if result.figures and not console.verbose:
        lines.append(f"  figures   {len(result.figures)}: -v prints them, --report FILE.html draws them")
    console.result(*lines)
    if console.verbose:
        _show_figures(result, console)
        _show_layers(result, console)
    console.warning(*result.warnings)


def _model(title: str, file: str) -> str:
    """A model in words with its file, which is all that is known of one that was not opened."""
    return f"{title}  ({file})" if title else file


def _says_strength(result: CheckResult) -> bool:
    return result.strength is not None and (result.verdict == "use at strength" or result.strength != 1.0)


def _show_figures(result: CheckResult, console: Console) -> None:
    console.table(
        ["figure", "value", "least", "greatest", "layers", "where there is nothing to see"],
        [_row(figure) for figure in result.figures],
    )
    for reason in result.reasons:
        if reason.threshold:
            console.result(f"threshold {reason.threshold} {reason.bound:g}: {reason.measured}")


def _row(figure: Quantity) -> list[str]:
    beside = "; ".join(f"{_number(null.value, figure.unit)} {null.name}" for null in figure.nulls)
    ends = [_number(value, figure.unit) for value in (figure.value, figure.low, figure.high)]
    return [figure.title, *ends, str(figure.layers), beside]


def _number(value: float, unit: str) -> str:
    return f"{100 * value:.3g} %" if unit == "share" else f"{value:+.3f}" if unit == "cosine" else f"{value:.3g}"


def _show_layers(result: CheckResult, console: Console) -> None:
    keys = [figure for figure in result.figures if figure.key in _IN_LAYERS]
    rows = [
        [layer.name, *(_cell(layer.figures, figure) for figure in keys)]
        for layer in result.layers
    ]  # fmt: skip
    console.table(["layer", *(figure.title for figure in keys)], rows)


_IN_LAYERS = ("drift", "update", "overlap", "dose", "rigidity_drift", "head_drift", "head_lora", "change")


def _cell(figures: Any, figure: Quantity) -> str:
    return _number(figures[figure.key], figure.unit) if figure.key in figures else ""


def show_many(loras: list[str], found: list[Any], console: Console) -> None:
    """A row for each LoRA."""
    rows = []
    for lora, each in zip(loras, found, strict=True):
        if isinstance(each, CheckResult):
            why = each.reasons[0].text if each.reasons else each.headline
            strength = "" if each.strength is None else f"{each.strength:g}"
            drift, dose = (each.figure(key) for key in ("drift", "dose"))
            cells = [_number(figure.value, figure.unit) if figure else "" for figure in (drift, dose)]
            rows.append([lora, each.verdict, strength, *cells, why])
        else:
            rows.append([lora, "error", "", "", "", text.reason(each)])
    console.table(["LoRA", "verdict", "strength", "drift", "dose", "why"], rows)
    results = zip(loras, found, strict=True)
    console.warnings_of({lora: each.warnings if isinstance(each, CheckResult) else () for lora, each in results})
