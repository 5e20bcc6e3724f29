"""The first stage: what file headers alone say. Whatever is hopeless ends here, in a second and without torch."""

from dataclasses import dataclass, replace

from loraport.adapters.dialect import SAME_AS_INPUT
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.usage import told_usage
from loraport.checking.names import kind_by_name
from loraport.checking.results import Coverage, Kind, Reason
from loraport.engine.match import Pair
from loraport.engine.plan import TransferPlan, make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.results import KnownModel
from loraport.engine.target import known_target, target_usage
from loraport.errors import MismatchError, UnmatchedKeysError
from loraport.methods import DEFAULT, registry
from loraport.settings import FrozenDict

MADE_BY_TRANSFER = "loraport.recipe"


@dataclass(frozen=True)
class Headers:
    """What is known before any weight was read.

    Attributes:
        plan: of the transfer that could follow.
        coverage: where the LoRA meets the target.
        partial: keys meet nothing, which a transfer refuses unless it is told to leave them out.
        transferred: for which model a transfer made this file already; None for an original.
        on_source: kinds of adapters in it that are functions of the weights they were trained on, in words.
        kind: how the target was made, where names tell.
        known: sentences from headers and names.
        target_known: the well-known model that the target is by its name.
        warnings: what the user should know.
    """

    plan: TransferPlan
    coverage: Coverage
    partial: bool
    transferred: str | None
    on_source: tuple[str, ...]
    kind: Kind | None
    known: tuple[str, ...]
    target_known: KnownModel | None
    warnings: tuple[str, ...]


def read_headers(recipe: Recipe, pair: Pair | None) -> Headers:
    """Match the files of a recipe against each other.

    Keys that meet nothing are no error here: how many they are is what is asked.

    Args:
        recipe: files and settings.
        pair: its models, where they are open already.

    Raises:
        MismatchError: they do not fit, so that the LoRA cannot help.
        FileError, UsageError: a file cannot be read, or the question makes no sense.
    """
    asked = recipe.model_copy(update={"to": SAME_AS_INPUT, "force": True})
    partial = False
    try:
        plan = _planned(asked, pair)
    except UnmatchedKeysError as strict:
        partial = True
        try:
            plan = _planned(asked.model_copy(update={"allow_partial": True}), pair)
        except MismatchError:
            raise strict from None
    adapter, target_known = plan.adapter, known_target(plan.source, plan.target, plan.added, recipe)
    on_source = {KINDS[layer.kind].title for layer in adapter.layers.values() if layer.weight}
    return Headers(
        plan=plan,
        coverage=_coverage(plan),
        partial=partial,
        transferred=_transferred(adapter.metadata),
        on_source=tuple(sorted(on_source)),
        kind=_kind_by_names(plan, target_known),
        known=_known(plan, target_known),
        target_known=target_known,
        warnings=tuple(text for text in plan.warnings if not text.endswith("was left out (--allow-partial)")),
    )


def _planned(recipe: Recipe, pair: Pair | None) -> TransferPlan:
    """The plan of a transfer, with both weights of every layer even where the method reads none of them."""
    method, params = registry.resolve(recipe.method, recipe.params)
    if not method.needs(params).nothing:
        return make_plan(recipe, pair)
    plan = make_plan(recipe.model_copy(update={"method": DEFAULT, "params": FrozenDict()}), pair)
    return replace(plan, recipe=recipe, method=method.name, params=params.model_dump(mode="json"))


def refusal_reasons(error: MismatchError, lora: str) -> tuple[Reason, ...]:
    """Why nothing can be done with these files, and what can be done about that. `lora`: which is named already."""
    elsewhere = error.where if error.where is not None and not error.where.startswith(lora) else None
    said = ": ".join(part for part in (error.what.rstrip("."), elsewhere, error.values) if part)
    return (Reason(said), *([Reason(f"what may help: {error.fix}")] if error.fix else []))


def _coverage(plan: TransferPlan) -> Coverage:
    split = grammar().split_suffix
    left_out = {key[: -suffix.length] for key in plan.dropped if (suffix := split(key)) is not None}
    return Coverage(
        keys=len(plan.adapter.keys),
        layers=len(plan.jobs) + len(left_out),
        met=len(plan.jobs),
        kept=sum(len(item.keys) for item in plan.passthrough),
        dropped=plan.dropped,
        of_model=len(plan.source.architecture.layers),
    )


def _transferred(metadata: dict[str, str]) -> str | None:
    if MADE_BY_TRANSFER not in metadata:
        return None
    return metadata.get("ss_base_model_version", "another model")


def _kind_by_names(plan: TransferPlan, known: KnownModel | None) -> Kind | None:
    """A distillation LoRA says what the target is; else the target's name may."""
    made = ""
    if known is not None and known.made is not None:
        made = f"judging by its name, it is {known.name}, made by {known.made} ({known.made_seen})"
    if plan.target is None:
        if not plan.added:
            return Kind(
                "the source without a LoRA of its own", "the target is the source alone (--source-lora)", "names"
            )
        files = ", ".join(each.adapter.path.name for each in plan.added)
        text = f"the target is the source plus {files}, so the drift is of low rank, exactly"
        return Kind("a LoRA", f"{text}; {made}" if made else text, "names")
    if known is not None and known.made is not None:
        return Kind(known.made, made, "names")
    return kind_by_name(str(plan.recipe.target), plan.target.path.name)


def _known(plan: TransferPlan, known: KnownModel | None) -> tuple[str, ...]:
    """How the LoRA was trained and how the target is sampled, where files say so."""
    trained, found = plan.adapter.training.sentence(), []
    if trained:
        found.append(f"the LoRA was trained {trained}")
    for each in plan.added:
        told = told_usage(each.adapter.path, each.adapter.metadata)
        found += [f"{each.adapter.path.name} says how it is sampled: {told}"] if told else []
    if known is not None:
        found.append(f"the target's authors say how it is sampled: {known}")
    if usage := target_usage(plan.target):
        found.append(f"the target's own files say how it is sampled: {usage}")
    return tuple(found)
