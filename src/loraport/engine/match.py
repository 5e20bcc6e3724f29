"""The files of a recipe, opened and fitted together by their headers."""

from dataclasses import dataclass

from loraport.adapters.adapter import LayerUpdate, LoraAdapter
from loraport.adapters.parse import open_adapter
from loraport.containers.tensors import TensorRef, common_dtype
from loraport.engine.recipe import Recipe
from loraport.errors import MismatchError, UnmatchedKeysError
from loraport.models.architecture import require_same_size
from loraport.models.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Inputs:
    """What the recipe names, opened.

    Attributes:
        adapter: the LoRA. source: its model. target: the distilled model, None where a LoRA makes it.
        distill, strength: that LoRA, None where a checkpoint is given.
    """

    adapter: LoraAdapter
    source: Checkpoint
    target: Checkpoint | None
    distill: LoraAdapter | None
    strength: float

    @property
    def notes(self) -> tuple[str, ...]:
        """Choices made while opening, and oddities of the LoRA, for the user."""
        return self.source.notes + (self.target.notes if self.target is not None else ()) + self.adapter.warnings

    @property
    def extras(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Weights that only the source has, and weights that only the target has."""
        source, target = self.source, self.target
        if target is None:
            return (), ()
        only_source = [name for name in source.tensors if name not in target.tensors]
        only_target = [name for name in target.tensors if name not in source.tensors]
        return tuple(only_source) + source.unknown, tuple(only_target) + target.unknown


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
        FileError, UnsupportedError: a file cannot be read or is of a kind that is refused.
        MismatchError, UnmatchedKeysError: the files do not fit each other, or the LoRA was transferred before.
    """
    source = open_checkpoint(recipe.source, nested=recipe.nested_source)
    target, distill, strength = None, None, 1.0
    parts = recipe.target_lora_parts()
    if parts is not None:
        distill, strength = open_adapter(parts[0], source), parts[1]
    else:
        assert recipe.target is not None
        target = open_checkpoint(recipe.target, nested=recipe.nested_target)
        require_same_size(source.architecture, target.architecture)
    adapter = open_adapter(
        recipe.lora,
        source,
        expert=recipe.expert,
        adapter=recipe.adapter,
        drop=recipe.drop,
        allow_partial=recipe.allow_partial,
    )
    _refuse_a_second_time(adapter, recipe)
    return Inputs(adapter, source, target, distill, strength)


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
