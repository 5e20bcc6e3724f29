"""The files of a recipe, opened and fitted together by their headers."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loraport.adapters.adapter import LoraAdapter, check_dropped
from loraport.adapters.fit import fit_passthrough
from loraport.adapters.parse import experts_in, open_adapter
from loraport.adapters.peft_config import CONFIG_FILE
from loraport.adapters.refusals import NO_EXPERT
from loraport.adapters.update import LayerUpdate
from loraport.containers.locate import expert_folders
from loraport.containers.names import Expert
from loraport.containers.references import TensorRef, file_identity
from loraport.engine.objections import doubts_about, notes_on_names, refuse_a_second_time, refuse_on_sum
from loraport.engine.recipe import Recipe
from loraport.engine.target import Added, notes_on_added, open_added
from loraport.errors import FileError, MismatchError, UnmatchedKeysError, UsageError
from loraport.models.architecture import require_same_size
from loraport.models.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Pair:
    """The models of a recipe, opened: all but the LoRA, so that several LoRAs can share it.

    Attributes:
        source: the model that the LoRA was trained on.
        target: the distilled model's checkpoint, None where LoRAs make it of the source.
        added: the distillation LoRAs that are added to it, or to the source.
        source_added: the LoRAs that are a part of the source, and not of the target.
        identities: file -> its `file_identity` when it was opened.
    """

    source: Checkpoint
    target: Checkpoint | None
    added: tuple[Added, ...]
    source_added: tuple[Added, ...]
    identities: Mapping[Path, str]


@dataclass(frozen=True)
class Inputs(Pair):
    """All that a recipe names, opened; the identities are those of all files.

    Attributes:
        adapter: the LoRA, at the strength and scale asked for.
        doubts: what the LoRA's header says against this use of it.
    """

    adapter: LoraAdapter
    doubts: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Choices made while opening, and oddities of the LoRAs, for the user."""
        return (
            notes_on_names(self.source)
            + self.source.notes
            + (self.target.notes if self.target is not None else ())
            + self.adapter.warnings
            + self.doubts
            + tuple(
                note
                for role, loras in (("LoRA of the source", self.source_added), ("distillation LoRA", self.added))
                for each in loras
                for note in notes_on_added(each, self.adapter, role)
            )
        )

    @property
    def extras(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Weights that only the source has, and weights that only the target has."""
        source, target = self.source, self.target
        if target is None:
            return (), ()
        one = [*(name for name in source.tensors if name not in target.tensors), *_more(source, target)]
        other = [*(name for name in target.tensors if name not in source.tensors), *_more(target, source)]
        return tuple(one), tuple(other)


def _more(side: Checkpoint, other: Checkpoint) -> list[str]:
    """Keys of no known layer that the other side does not have, whatever prefix either writes."""
    return [key for name, key in side.extra.items() if name not in other.extra]


def open_pair(recipe: Recipe, expert: Expert | None) -> Pair:
    """Open the models of a recipe, and the LoRAs that are a part of them.

    Args:
        recipe: its LoRA is not looked at.
        expert: of `expert_meant`.

    Raises:
        FileError, UnsupportedError, MismatchError: as `open_inputs`.
    """
    parts = (*recipe.source_lora, *recipe.target_lora)
    named = [recipe.source, recipe.target, *(each.file for each in parts)]
    before = _identities(Path(spec) for spec in named if spec is not None)
    family = recipe.architecture
    source = open_checkpoint(recipe.source, nested=recipe.nested_source, expert=expert, architecture=family)
    target = None
    if recipe.target is not None:
        target = open_checkpoint(
            recipe.target, nested=recipe.nested_target, expert=expert, architecture=family, like=source
        )
        require_same_size(source.architecture, target.architecture, where=f"{source.path} and {target.path}")
        if recipe.source_lora and target.tensors == source.tensors:
            target = None  # the source without its LoRAs: then the drift is theirs, exactly, however coarse the weights
    added = tuple(Added(each, open_added(each, source, recipe)) for each in recipe.target_lora)
    own = tuple(Added(each, open_added(each, source, recipe)) for each in recipe.source_lora)
    identities = before | _identities(_files(source, target, *(each.adapter for each in (*own, *added))))
    _refuse_changed(before)
    return Pair(source, target, added, own, identities)


def open_inputs(recipe: Recipe, pair: Pair | None = None) -> Inputs:
    """Open every file of a recipe.

    Args:
        recipe: what is asked for.
        pair: its models, where they are open already.

    Raises:
        FileError, UnsupportedError: a file cannot be read, is of a kind that is refused, or changes meanwhile.
        MismatchError, UnmatchedKeysError: the files do not fit each other, or the LoRA was transferred before.
    """
    before = _identities([Path(recipe.lora)])
    pair = pair or open_pair(recipe, expert_meant(recipe))
    adapter = open_adapter(
        recipe.lora,
        pair.source,
        expert=recipe.expert,
        adapter=recipe.adapter,
        drop=recipe.drop,
        allow_partial=recipe.allow_partial,
        scale=recipe.scale,
    ).scaled(recipe.strength)
    check_dropped(recipe.drop, [adapter, *(each.adapter for each in (*pair.added, *pair.source_added))])
    refuse_on_sum(adapter, pair.source_added, recipe)
    if pair.target is not None:
        adapter = fit_passthrough(adapter, pair.target, "target", allow_partial=recipe.allow_partial)
    adapter = _without_idle(adapter, recipe)
    refuse_a_second_time(adapter, recipe)
    identities = {**before, **_identities(_files(adapter)), **pair.identities}
    _refuse_changed(before)
    doubts = doubts_about(adapter, recipe)
    return Inputs(pair.source, pair.target, pair.added, pair.source_added, identities, adapter, doubts)


def _refuse_changed(before: Mapping[Path, str]) -> None:
    for file, identity in before.items():
        if file_identity(file) != identity:
            raise FileError(
                "a file changed while it was opened",
                where=str(file),
                fix="run the command again when nothing writes to the file",
            )


def expert_meant(recipe: Recipe) -> Expert | None:
    """Which expert of Wan2.2 the models are of. Of a source that holds two, one must be meant, and nothing in a plain
    LoRA says which one it was trained on.

    Raises:
        UsageError: nothing says it. FileError: the LoRA cannot be read, and the source has two.
    """
    if recipe.expert is not None or recipe.nested_source is not None or len(expert_folders(recipe.source)) < 2:
        return recipe.expert
    named = experts_in(recipe.lora)
    if len(named) == 1:
        return next(iter(named))
    raise UsageError(
        "the source has two experts, and none is chosen",
        where=recipe.source,
        values=", ".join(folder.name for folder in expert_folders(recipe.source).values()),
        fix="use --expert high or low for the one that the LoRA was trained on, or transfer --expert both for "
        "both in one job",
    )


def _without_idle(adapter: LoraAdapter, recipe: Recipe) -> LoraAdapter:
    """Without the remark that the expert chose nothing in the LoRA, where it chose the models."""
    if not any(expert_folders(spec) for spec in (recipe.source, recipe.target) if spec is not None):
        return adapter
    return replace(adapter, warnings=tuple(text for text in adapter.warnings if NO_EXPERT not in text))


def _identities(files: Iterable[Path]) -> dict[Path, str]:
    """Which state each file is in; what is no file (a folder, a name on the hub) is left out."""
    return {file: file_identity(file) for file in files if os.path.isfile(file)}  # false for impossible names too


def _files(*inputs: Checkpoint | LoraAdapter | None) -> set[Path]:
    """Every file that tensors are read from, and what may say their scale beside a LoRA."""
    found: set[Path] = set()
    refs: list[TensorRef] = []
    for one in inputs:
        if isinstance(one, Checkpoint):
            refs += one.tensors.values()
        elif one is not None:
            found |= {one.path, one.path.parent / CONFIG_FILE}
            refs += [ref for layer in one.layers.values() for ref in layer.refs.values()]
            refs += [item.ref for item in one.passthrough]
    for ref in refs:
        found |= {ref.file, *(companion.file for _, companion in ref.companions)}
    return found


def weights_of(
    name: str, update: LayerUpdate, inputs: Inputs, recipe: Recipe
) -> tuple[TensorRef, TensorRef | None] | None:
    """The layer's two weights, one where there is no target checkpoint; None when one is missing and the recipe allows
    that.

    Raises:
        UnmatchedKeysError: a checkpoint lacks the layer. MismatchError: the sizes differ.
    """
    sides = {"source": inputs.source} | ({"target": inputs.target} if inputs.target is not None else {})
    found = {}
    for role, side in sides.items():
        ref = side.tensors.get(f"{name}.weight")
        if ref is None:
            if recipe.allow_partial:
                return None
            raise UnmatchedKeysError(
                f"the LoRA changes a layer that the {role} does not have",
                where=name,
                values=f"{update.keys[0]} in {recipe.lora}; {side.path}",
                fix="check that the LoRA was trained on this model, or leave such layers out with --allow-partial",
            )
        if tuple(ref.shape) != tuple(update.shape):
            raise MismatchError(
                f"the LoRA and the {role} differ in size",
                where=name,
                values=f"LoRA {_size(update.shape)}, {role} {_size(ref.shape)} ({side.path})",
                fix="use the checkpoint of the size that the LoRA was trained on",
            )
        found[role] = ref
    return found["source"], found.get("target")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
