"""How a target is composed: a checkpoint, or the source itself, with distillation LoRAs added to it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.added_lora import AddedLora
from loraport.adapters.parse import expert_of_keys, open_adapter
from loraport.adapters.update import LayerUpdate
from loraport.adapters.usage import known_usage, told_schedule, told_usage, ways_to_sample
from loraport.engine.recipe import Recipe
from loraport.engine.results import KnownModel, UsedWith
from loraport.errors import LoraportError, UsageError
from loraport.models.architecture import LayerName
from loraport.models.checkpoint import Checkpoint
from loraport.wording import count

_NAMED = 20  # keys named in a sentence
_CHECKPOINT = "this file is a checkpoint"


@dataclass(frozen=True)
class Added:
    """A LoRA that is a part of the target or of the source.

    Attributes:
        given: file, strength and choices, as asked for.
        adapter: what the file holds, at strength 1.
    """

    given: AddedLora
    adapter: LoraAdapter

    def update(self, layer: LayerName) -> LayerUpdate | None:
        """What it adds to a layer, strength inside; None where it leaves the layer alone."""
        found = self.adapter.layers.get(layer)
        return None if found is None else replace(found, scale=found.scale * self.given.strength)


def open_added(given: AddedLora, source: Checkpoint, recipe: Recipe) -> LoraAdapter:
    """A distillation LoRA. What was said of all keys holds for its keys as well; its own choices go before.

    Args:
        given: file and choices.
        source: the model it must fit.
        recipe: what is said of all files.

    Raises:
        LoraportError: as `open_adapter`.
    """

    def opened(adapter: str | None) -> LoraAdapter:
        return open_adapter(
            given.file,
            source,
            expert=given.expert or recipe.expert,
            adapter=adapter,
            drop=recipe.drop,
            allow_partial=recipe.allow_partial,
            scale=given.scale,
            layers_alone=True,
        )

    try:
        if given.adapter is not None or recipe.adapter is None:
            return opened(given.adapter)
        try:
            return opened(recipe.adapter)
        except UsageError:
            return opened(None)  # the name was meant for the other file; several adapters are still an error
    except LoraportError as error:
        fix = _own_scale(error.fix or "")
        if _CHECKPOINT in error.what:
            fix = "give a whole distilled model with --target"
        if fix == (error.fix or ""):
            raise
        raise type(error)(error.what, where=error.where, values=error.values, fix=fix) from None


def _own_scale(text: str) -> str:
    """Advice about the scale, for a file that --scale does not reach."""
    return re.sub(r"--scale(?: (\d\S*))?", lambda found: f":scale={found[1] or 'NUMBER'} behind the file", text)


def notes_on_added(added: Added, lora: LoraAdapter, role: str) -> list[str]:
    """Its oddities; choices that were made for another LoRA may well choose nothing in it.

    Args:
        added: the LoRA.
        lora: the one that is transferred.
        role: what it is, in words.
    """
    name, found = f"{role} {Path(added.given.file).name}", added.adapter
    notes = [f"{name}: {_own_scale(note)}" for note in found.warnings if not note.endswith("chose nothing")]
    experts = expert_of_keys(found.keys)
    dropped = [key for key in found.dropped if experts.get(key) in (None, found.expert)]
    if len(dropped) < len(found.dropped):
        notes.append(f"{name} holds the LoRAs of both experts; each half is used for its own")
    if dropped:
        named = ", ".join(dropped[:_NAMED]) + (", ..." if len(dropped) > _NAMED else "")
        notes.append(f"{name}: {count(len(dropped), 'key', 'was/were')} left out: {named}")
    if not lora.layers.keys() & found.layers.keys():
        notes.append(f"{name}: changes none of the layers that the LoRA changes, so it makes no difference to them")
    return notes


def twins(added: Sequence[Added], digests: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Sentences about LoRAs that hold the same numbers under different names, so that they count twice.

    Args:
        added: the distillation LoRAs.
        digests: of the tensors of each layer, by role.
    """

    def numbers(layer: Mapping[str, str], at: int) -> dict[str, str]:
        start = f"target_lora.{at}."
        return {role.removeprefix(start): digest for role, digest in layer.items() if role.startswith(start)}

    for (first, one), (second, two) in combinations(enumerate(added), 2):
        pairs = [(numbers(layer, first), numbers(layer, second)) for layer in digests]
        if any(mine for mine, _ in pairs) and all(mine == theirs for mine, theirs in pairs):
            yield (f"{one.given.file} and {two.given.file} hold the same LoRA, so it counts twice")


def used_with(added: Added, recipe: Recipe) -> UsedWith:
    """What the report says of one of them.

    Args:
        added: the LoRA.
        recipe: what was said of all files.
    """
    found, wanted = added.adapter, added.given.adapter or recipe.adapter
    named = wanted if wanted in (found.dialect.adapter, *found.nest) else None
    usage = told_usage(found.path, found.metadata) or None
    return UsedWith(str(found.path), added.given.strength, found.expert, named, usage)


def target_usage(target: Checkpoint | None) -> str | None:
    """How a target is sampled, as files beside it say; None where none does, or where LoRAs make it: they say it."""
    if target is None:
        return None
    return "; ".join(text for text in (told_usage(target.path, {}), told_schedule(target.path)) if text) or None


def known_target(
    source: Checkpoint, target: Checkpoint | None, added: Sequence[Added], recipe: Recipe
) -> KnownModel | None:
    """The well-known model that a target is by its name, or that a distillation LoRA makes of the source.

    Args:
        source: the model that the LoRA was trained on.
        target: the checkpoint; None where LoRAs alone make the target.
        added: the distillation LoRAs.
        recipe: what the user called them.
    """
    family = source.architecture.family
    files: list[tuple[Path, Mapping[str, str], str | None]] = [
        (each.adapter.path, each.adapter.metadata, each.given.file) for each in added
    ]
    files += [(target.path, {}, recipe.target)] if target is not None else []
    for path, metadata, said in files:  # a LoRA that is added to a distilled model decides how the two are sampled
        known = known_usage(path, metadata, family, said)
        if known is not None:
            made, made_seen = known.made or (None, None)
            return KnownModel(known.name, known.how, known.seen, made, made_seen, ways_to_sample(known, family))
    return None


def used_together(loras: Sequence[UsedWith], target: Path | None) -> tuple[str, ...]:
    """How the result is used where LoRAs are a part of the target; nothing where none is.

    Args:
        loras: the distillation LoRAs.
        target: the checkpoint that they are added to; None for the source.
    """
    if not loras:
        return ()
    base = "the source" if target is None else str(target)
    return (
        f"together with {', '.join(map(str, loras))}, on {base}: that is the target that this file is for",
        *(f"{Path(used.file).name} says how it is sampled: {used.usage}" for used in loras if used.usage),
    )
