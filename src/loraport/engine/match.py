"""The files of a recipe, opened and fitted together by their headers."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loraport.adapters.adapter import LayerUpdate, LoraAdapter
from loraport.adapters.fit import fit_passthrough
from loraport.adapters.parse import experts_in, open_adapter
from loraport.adapters.refusals import NO_EXPERT
from loraport.adapters.training import other_side
from loraport.containers.locate import expert_folders
from loraport.containers.names import Expert
from loraport.containers.tensors import TensorRef, common_dtype, file_identity
from loraport.engine.recipe import Recipe
from loraport.errors import FileError, MismatchError, UnmatchedKeysError, UsageError
from loraport.models.architecture import require_same_size
from loraport.models.checkpoint import Checkpoint, open_checkpoint

_NAMED = 20  # keys named in a sentence


@dataclass(frozen=True)
class Inputs:
    """What the recipe names, opened.

    Attributes:
        adapter: the LoRA, at the strength and scale asked for.
        source: its model.
        target: the distilled model, None where a LoRA makes it.
        distill: that LoRA, None where a checkpoint is given.
        strength: of the distillation LoRA.
        doubts: what the LoRA's header says against this use of it.
        identities: file -> its `file_identity` when it was opened.
    """

    adapter: LoraAdapter
    source: Checkpoint
    target: Checkpoint | None
    distill: LoraAdapter | None
    strength: float
    doubts: tuple[str, ...]
    identities: Mapping[Path, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """Choices made while opening, and oddities of the LoRAs, for the user."""
        return (
            self.source.notes
            + (self.target.notes if self.target is not None else ())
            + self.adapter.warnings
            + self.doubts
            + (() if self.distill is None else _notes_on_distillation(self.distill))
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


@dataclass(frozen=True)
class Weights:
    """The two weights of a layer; `target` is None where a distillation LoRA makes the target."""

    source: TensorRef
    target: TensorRef | None

    @property
    def common_dtype(self) -> str | None:
        """The coarser dtype (torch name) when the two are stored in different ones."""
        return None if self.target is None else common_dtype(self.source, self.target)


def open_inputs(recipe: Recipe) -> Inputs:
    """Open every file of a recipe.

    Raises:
        FileError, UnsupportedError: a file cannot be read, is of a kind that is refused, or changes meanwhile.
        MismatchError, UnmatchedKeysError: the files do not fit each other, or the LoRA was transferred before.
    """
    before = _identities(Path(spec) for spec in (recipe.lora, recipe.source, recipe.target) if spec is not None)
    expert = _expert_meant(recipe)
    source = open_checkpoint(recipe.source, nested=recipe.nested_source, expert=expert)
    target, distill, strength = None, None, 1.0
    parts = recipe.target_lora_parts()
    if parts is not None:
        before |= _identities([Path(parts[0])])
        distill, strength = _open_distillation(parts[0], source, recipe), parts[1]
    else:
        assert recipe.target is not None
        target = open_checkpoint(recipe.target, nested=recipe.nested_target, expert=expert)
        require_same_size(source.architecture, target.architecture, where=f"{source.path} and {target.path}")
    adapter = open_adapter(
        recipe.lora,
        source,
        expert=recipe.expert,
        adapter=recipe.adapter,
        drop=recipe.drop,
        allow_partial=recipe.allow_partial,
        scale=recipe.scale,
    ).scaled(recipe.strength)
    if target is not None:
        adapter = fit_passthrough(adapter, target, "target", allow_partial=recipe.allow_partial)
    adapter = _without_idle(adapter, recipe)
    _refuse_a_second_time(adapter, recipe)
    identities = before | _identities(_files(source, target, adapter, distill))
    for file, identity in before.items():
        if file_identity(file) != identity:
            raise FileError(
                "a file changed while it was opened",
                where=str(file),
                fix="run the command again when nothing writes to the file",
            )
    return Inputs(adapter, source, target, distill, strength, _doubts(adapter, recipe), identities)


def _expert_meant(recipe: Recipe) -> Expert | None:
    """Which expert of Wan2.2 the models are of. Of a source that holds two, one must be meant, and nothing in a plain
    LoRA says which one it was trained on."""
    if recipe.expert is not None or recipe.nested_source is not None or len(expert_folders(recipe.source)) < 2:
        return recipe.expert
    named = experts_in(recipe.lora)
    if len(named) == 1:
        return next(iter(named))
    raise UsageError(
        "the source has two experts, and nothing says which one is meant",
        where=recipe.source,
        values=", ".join(folder.name for folder in expert_folders(recipe.source).values()),
        fix="--expert high or low for the one that the LoRA was trained on; --expert both for both in one job",
    )


def _without_idle(adapter: LoraAdapter, recipe: Recipe) -> LoraAdapter:
    """Without the remark that the expert chose nothing in the LoRA, where it chose the models."""
    if not any(expert_folders(spec) for spec in (recipe.source, recipe.target) if spec is not None):
        return adapter
    return replace(adapter, warnings=tuple(text for text in adapter.warnings if NO_EXPERT not in text))


def _open_distillation(path: str, source: Checkpoint, recipe: Recipe) -> LoraAdapter:
    """The LoRA that makes the target. What was said of the LoRA's keys holds for its keys as well."""

    def opened(adapter: str | None) -> LoraAdapter:
        return open_adapter(
            path,
            source,
            expert=recipe.expert,
            adapter=adapter,
            drop=recipe.drop,
            allow_partial=recipe.allow_partial,
        )

    try:
        return opened(recipe.adapter)
    except UsageError:
        if recipe.adapter is None:
            raise
        return opened(None)  # the name was meant for the other file; several adapters are still an error


def _identities(files: Iterable[Path]) -> dict[Path, str]:
    """Which state each file is in; what is no file (a folder, a name on the hub) is left out."""
    return {file: file_identity(file) for file in files if os.path.isfile(file)}  # false for impossible names too


def _files(*inputs: Checkpoint | LoraAdapter | None) -> set[Path]:
    """Every file that tensors are read from."""
    found: set[Path] = set()
    refs: list[TensorRef] = []
    for one in inputs:
        if isinstance(one, Checkpoint):
            refs += one.tensors.values()
        elif one is not None:
            found.add(one.path)
            refs += [ref for layer in one.layers.values() for ref in layer.parts.values()]
            refs += [item.ref for item in one.passthrough]
    for ref in refs:
        found |= {ref.file, *(companion.file for _, companion in ref.companions)}
    return found


def weights_of(name: str, update: LayerUpdate, inputs: Inputs, recipe: Recipe) -> Weights | None:
    """The layer's two weights; None when one is missing and the recipe allows that.

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
    return Weights(found["source"], found.get("target"))


def _notes_on_distillation(distill: LoraAdapter) -> tuple[str, ...]:
    """Its oddities; choices that were made for the other LoRA may well choose nothing in it."""
    notes = [f"distillation LoRA: {note}" for note in distill.warnings if not note.endswith("chose nothing")]
    if distill.dropped:
        named = ", ".join(distill.dropped[:_NAMED]) + (", ..." if len(distill.dropped) > _NAMED else "")
        notes.append(f"{len(distill.dropped)} keys of the distillation LoRA were left out: {named}")
    return tuple(notes)


def _doubts(adapter: LoraAdapter, recipe: Recipe) -> tuple[str, ...]:
    """Where the header says that the LoRA was trained on something else than the recipe takes for its model."""
    training = adapter.training
    said = other_side(training, recipe.source, recipe.target or (recipe.target_lora_parts() or ("",))[0])
    found = [] if said is None else [said]
    if training.timesteps and recipe.expert and training.expert not in (None, recipe.expert):
        least, greatest = training.timesteps
        found.append(
            f"{adapter.path.name} is taken for the {recipe.expert}-noise expert, and its header says that time steps "
            f"{least} to {greatest} were trained, those of the {training.expert}-noise one: are two LoRAs swapped?"
        )
    return tuple(found)


def _refuse_a_second_time(adapter: LoraAdapter, recipe: Recipe) -> None:
    earlier = adapter.metadata.get("loraport.recipe")
    if earlier is not None and not recipe.force:
        raise MismatchError(
            "the LoRA was transferred already",
            where=str(adapter.path),
            values=f"made for {adapter.metadata.get('ss_base_model_version', 'another model')}",
            fix="transfer the original LoRA instead, or go on with --force",
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
