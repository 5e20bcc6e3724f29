"""Does a LoRA fit a model? One sentence with both sides where it does not."""

from pathlib import Path

from loraport.adapters.assemble import Assembled
from loraport.errors import MismatchError
from loraport.models.architecture import Architecture
from loraport.models.checkpoint import Checkpoint


def check_fit(
    done: Assembled, own: Architecture, model: Checkpoint | Architecture, role: str, path: Path
) -> dict[str, str]:
    """Compare every layer and every carried parameter with the model.

    Args:
        done: the LoRA's layers. own: what the LoRA shows of the model it was made for.
        model: the model. role: what to call it. path: the LoRA's file.

    Returns:
        Raw keys that change something the model does not have, with the reason.

    Raises:
        MismatchError: another size of the same family.
    """
    architecture = model.architecture if isinstance(model, Checkpoint) else model
    for name, layer in done.layers.items():
        shape = architecture.modules.get(name)
        if shape is None or shape == layer.shape:
            continue
        if name in architecture.misfits or own.title == architecture.title:
            raise MismatchError(
                f"{name} is {_by(layer.shape)} in the LoRA and {_by(shape)} in the {role}",
                where=str(path),
                values=architecture.misfits.get(name, layer.keys[0]),
                fix="use the checkpoint that the LoRA was trained on, or leave the layer out with --drop",
            )
        raise _mismatch(own, architecture, role, path, f"{name}: {_by(layer.shape)} and {_by(shape)}")
    for letter, called in own.family.counters.items():
        has = architecture.dimensions.get(called, 0)
        # A model without any blocks of a kind lacks these layers; one with fewer is another size.
        if own.dimensions[called] > has > 0:
            numbers = {
                n: found[1] or 0 for n in done.layers if (found := own.family.find(n)) and found[0].counter == letter
            }
            highest = max(numbers, key=lambda name: numbers[name])
            raise _mismatch(own, architecture, role, path, f"{highest}, but the {role} has {has} {called}")
    absent = f"the {role} has no such layer"
    problems = {
        key: absent for name, layer in done.layers.items() if name not in architecture.layers for key in layer.keys
    }
    params = set(model.tensors) if isinstance(model, Checkpoint) else None
    for item in done.carried:
        known = item.param in params if params is not None else item.module in architecture.modules
        if not known:
            problems.update(dict.fromkeys(item.keys, f"the {role} has no {item.param}"))
    return problems


def _mismatch(own: Architecture, architecture: Architecture, role: str, path: Path, values: str) -> MismatchError:
    return MismatchError(
        f"This LoRA is for {own.title}, the {role} is {architecture.title}.",
        where=str(path),
        values=values,
        fix=f"use the {role} of the size that the LoRA was trained on",
    )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
