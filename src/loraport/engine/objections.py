"""What speaks against a LoRA on this source and target, beside names and sizes: refusals and doubts."""

from collections.abc import Iterable

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.training import other_side, swapped_by_name
from loraport.engine.recipe import Recipe
from loraport.engine.target import Added
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.checkpoint import Checkpoint


def refuse_on_sum(adapter: LoraAdapter, own: Iterable[Added], recipe: Recipe) -> None:
    """A function of the weights that the LoRA was trained on needs those weights, with what was on them."""
    adapter.check_weights()  # of a fused weight in the file the source may lack a layer
    if not recipe.source_lora:
        return
    on_it = {item.param for each in own for item in each.adapter.passthrough}
    changed = [
        *((f"the update of {layer.name}", layer.keys[0]) for layer in adapter.layers.values() if layer.weight),
        *(
            (f"the change of {item.param}", item.keys[0])
            for item in adapter.passthrough
            if item.source and item.param in on_it
        ),
    ]
    if changed:
        what, key = changed[0]
        raise UnsupportedError(
            f"{what} is a function of the weight it was trained on, which --source-lora changed",
            where=recipe.lora,
            values=f"{key}; {recipe.source_lora[0].file}",
            fix="merge the LoRA into the source first, and name the result with --source",
        )


def doubts_about(adapter: LoraAdapter, recipe: Recipe) -> tuple[str, ...]:
    """Where the header or the names say that the LoRA was trained on something else than the recipe's source."""
    training = adapter.training
    target = recipe.target or " ".join(each.file for each in recipe.target_lora)
    said = None if recipe.source_lora else other_side(training, recipe.source, target)  # else it was thought of
    if said is None and recipe.target and not recipe.source_lora:
        said = swapped_by_name(training, recipe.source, recipe.target)
    found = [] if said is None else [said]
    if training.timesteps and recipe.expert and training.expert not in (None, recipe.expert):
        least, greatest = training.timesteps
        found.append(
            f"{adapter.path.name} is used for the {recipe.expert}-noise expert, but its header says it was "
            f"trained on time steps {least} to {greatest}, those of the {training.expert}-noise one: "
            "are two LoRAs swapped?"
        )
    return tuple(found)


def notes_on_names(source: Checkpoint) -> tuple[str, ...]:
    """What is to be said of a model of no known family."""
    if not source.architecture.family.unnamed:
        return ()
    return (
        "layers are matched by name and shape alone (--architecture any): fused layers and layers in another "
        "order are not recognised, and it was not checked which programs read the output",
    )


def refuse_a_second_time(adapter: LoraAdapter, recipe: Recipe) -> None:
    """A transfer takes back what another did. Raises MismatchError, unless `force` is on."""
    earlier = adapter.metadata.get("loraport.recipe")
    if earlier is not None and not recipe.force:
        raise MismatchError(
            "the LoRA was already transferred",
            where=str(adapter.path),
            values=f"made for {adapter.metadata.get('ss_base_model_version', 'another model')}",
            fix="transfer the original LoRA instead, or continue with --force",
        )
