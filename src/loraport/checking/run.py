"""A check from files to verdict: headers first, then, where they leave it open, layers."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.adapters.added_lora import OPTIONS, AddedLora
from loraport.adapters.loaders import ways_to_load
from loraport.checking.digests import known_digests
from loraport.checking.headers import Headers, read_headers, refusal_reasons
from loraport.checking.results import CheckResult, Stage
from loraport.checking.verdict import Judgement, Seen, judge, judge_headers, kind_of
from loraport.containers.names import Expert
from loraport.engine.inputs import inputs_of
from loraport.engine.many.asked import output_name
from loraport.engine.many.plan import Pairs
from loraport.engine.match import expert_meant
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.engine.target import target_usage
from loraport.errors import LoraportError, MismatchError, UsageError

if TYPE_CHECKING:
    from loraport.checking.weights import Weighed

Checked = CheckResult | LoraportError


def check_recipe(recipe: Recipe, options: RunOptions, *, deep: bool) -> CheckResult:
    """Check one LoRA.

    Args:
        recipe: files, and the method whose change is measured.
        options: device, workers, memory.
        deep: look at all layers.

    Raises:
        FileError, UsageError, NumericalError: a file cannot be read, the question makes no sense, a weight is damaged.
            Files that do not fit each other are no error here but a verdict.
    """
    (found,) = check_recipes([recipe], options, deep=deep)
    if isinstance(found, LoraportError):
        raise found
    return found


def check_recipes(recipes: Sequence[Recipe], options: RunOptions, *, deep: bool = False) -> list[Checked]:
    """Check several LoRAs on one pair of models, which is opened once. What is wrong with one stops no other.

    Args:
        recipes: that differ in their LoRA alone.
        options: device, workers, memory.
        deep: look at all layers.

    Returns:
        What was found of each, or the error, in their order.
    """
    began = time.perf_counter()
    done: dict[int, Checked] = {}
    found: dict[int, Headers] = {}
    pairs = Pairs()
    for number, recipe in enumerate(recipes):
        try:
            headers = read_headers(recipe, pairs.of(recipe, _expert(recipe)))
        except MismatchError as error:
            done[number] = _refused(recipe, error, time.perf_counter() - began)
            continue
        except LoraportError as error:
            done[number] = error
            continue
        judged = judge_headers(headers)
        if judged is None:
            found[number] = headers
        else:
            digests = known_digests(headers.plan, options, read=False)
            done[number] = _result(recipe, headers, judged, None, "headers", digests, deep, began)
    if found:
        done |= _by_weights(recipes, found, options, deep, began)
    return [done[number] for number in range(len(recipes))]


def _expert(recipe: Recipe) -> Expert | None:
    """As `expert_meant`; a check is about one expert."""
    try:
        return expert_meant(recipe)
    except UsageError as error:
        if "--expert both" not in (error.fix or ""):
            raise
        fix = "check the LoRA on each in turn: --expert high, then --expert low"
        raise UsageError(error.what, where=error.where, values=error.values, fix=fix) from None


def _by_weights(
    recipes: Sequence[Recipe], found: Mapping[int, Headers], options: RunOptions, deep: bool, began: float
) -> dict[int, Checked]:
    from loraport.checking.weights import weigh  # brings torch along, for which a refusal by headers does not wait

    groups: dict[str | None, dict[int, Headers]] = {}
    for number, headers in found.items():
        groups.setdefault(_expert(recipes[number]), {})[number] = headers
    done: dict[int, Checked] = {}
    for group in groups.values():
        try:
            weighed = weigh(group, options, deep=deep)
        except LoraportError as error:
            if len(group) == 1:
                done[next(iter(group))] = error
                continue
            for number, headers in group.items():  # which of them it was: each alone
                done |= _by_weights(recipes, {number: headers}, options, deep, began)
            continue
        for number, headers in group.items():
            seen = weighed[number]
            digests = known_digests(headers.plan, options, read=True)
            done[number] = _judged(recipes[number], headers, seen, digests, deep, began)
    return done


def _judged(
    recipe: Recipe, headers: Headers, weighed: "Weighed", digests: Mapping[str, str], deep: bool, began: float
) -> CheckResult:
    seen = Seen(headers, dict(weighed.figures), weighed.layers, weighed.elsewhere, headers.plan.method)
    stage: Stage = "all layers" if deep else "sample"
    return replace(_result(recipe, headers, judge(seen), weighed, stage, digests, deep, began), kind=kind_of(seen))


def _refused(recipe: Recipe, error: MismatchError, seconds: float) -> CheckResult:
    return CheckResult(
        lora=recipe.lora,
        source=recipe.source,
        source_title="",
        target=recipe.target,
        target_title="",
        target_lora=tuple(_named(each.file, each.strength) for each in recipe.target_lora),
        verdict="cannot help",
        strength=None,
        headline="the files do not fit each other",
        reasons=refusal_reasons(error, recipe.lora),
        stage="headers",
        seconds=seconds,
    )


def _result(
    recipe: Recipe,
    headers: Headers,
    judged: Judgement,
    weighed: "Weighed | None",
    stage: Stage,
    digests: Mapping[str, str],
    deep: bool,
    began: float,
) -> CheckResult:
    plan = headers.plan
    target = plan.source if plan.target is None else plan.target
    strength = None if judged.strength is None else judged.strength * recipe.strength
    load: list[str] = []
    if strength is not None and judged.verdict != "convert":
        load = ways_to_load(plan.adapter.path, plan.content, strength=strength)
    return CheckResult(
        lora=recipe.lora,
        source=recipe.source,
        source_title=plan.source.architecture.title,
        target=recipe.target,
        target_title=target.architecture.title,
        target_lora=tuple(_named(each.file, each.strength) for each in recipe.target_lora),
        verdict=judged.verdict,
        strength=strength,
        headline=judged.headline,
        reasons=judged.reasons,
        stage=stage,
        coverage=headers.coverage,
        kind=headers.kind,
        figures=() if weighed is None else tuple(weighed.figures.values()),
        layers=() if weighed is None else weighed.layers,
        layers_of=len(plan.jobs),
        command=_command(recipe, judged.strength, partial=headers.partial) if judged.verdict == "convert" else "",
        load=tuple(load),
        known=headers.known,
        warnings=headers.warnings,
        seconds=time.perf_counter() - began,
        inputs=tuple(inputs_of(plan, digests)),
        flags=(*recipe.flags(), *(("--deep",) if deep else ())),
        target_known=headers.target_known,
        target_usage=target_usage(plan.target),
    )


def _spelt(lora: AddedLora) -> str:
    """As it is said on the command line."""
    more = [f"{name}={value}" for name in OPTIONS if (value := getattr(lora, name)) is not None]
    return ":".join([lora.file, f"{lora.strength:g}", *more])


def _named(file: str, strength: float) -> str:
    return f"{file} at strength {strength:g}"


def _command(recipe: Recipe, strength: float | None, *, partial: bool) -> str:
    """The transfer that a conversion is."""
    words = ["loraport", "transfer", recipe.lora, "--source", recipe.source]
    words += ["--target", recipe.target] if recipe.target is not None else []
    for flag, loras in (("--source-lora", recipe.source_lora), ("--target-lora", recipe.target_lora)):
        words += [part for each in loras for part in (flag, _spelt(each))]
    factor = (strength or 1.0) * recipe.strength
    words += ["--strength", f"{factor:g}"] if factor != 1.0 else []
    words += ["--allow-partial"] if partial else []
    made = f"{Path(output_name(recipe.lora)).stem}-converted.safetensors"
    return " ".join([shlex.join(words), *recipe.flags("strength"), shlex.join(["-o", made])])
