"""Does a LoRA fit a model? One sentence with both sides where it does not."""

from dataclasses import replace
from pathlib import Path

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.assemble import Assembled
from loraport.adapters.passthrough import Passthrough
from loraport.errors import MismatchError, UnmatchedKeysError
from loraport.models.architecture import Architecture, by
from loraport.models.checkpoint import Checkpoint
from loraport.wording import count


def check_fit(
    done: Assembled, own: Architecture, model: Checkpoint | Architecture, role: str, path: Path
) -> dict[str, str]:
    """Compare every layer and every parameter that is changed by what is passed through with the model.

    Args:
        done: the LoRA's layers and what it passes on.
        own: what the LoRA shows of the model it was made for.
        model: the model.
        role: what to call it.
        path: the LoRA's file.

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
        # The two titles tell the difference only where they say different widths.
        if name in architecture.misfits or own.dimensions.get("width") == architecture.dimensions.get("width"):
            raise MismatchError(
                f"{name} is {by(layer.shape)} in the LoRA and {by(shape)} in the {role}",
                where=str(path),
                values=architecture.misfits.get(name, layer.keys[0]),
                fix="use the checkpoint that the LoRA was trained on, or leave the layer out with --drop",
            )
        raise _mismatch(own, architecture, role, path, f"{name}: {by(layer.shape)} and {by(shape)}")
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
    for item in done.passthrough:
        wrong = _misfit(item, model, role)
        if wrong:
            problems.update(dict.fromkeys(item.keys, wrong))
    return problems


def fit_passthrough(adapter: LoraAdapter, model: Checkpoint, role: str, *, allow_partial: bool) -> LoraAdapter:
    """Compare what is passed on with another model than the one the LoRA was opened for: the one it goes to.

    Args:
        adapter: the LoRA.
        model: the model.
        role: what to call it.
        allow_partial: leave out what does not fit, instead of refusing it.

    Returns:
        The LoRA without what does not fit.

    Raises:
        UnmatchedKeysError: a change of a parameter that the model does not have, or has in another shape.
    """
    wrong = {item: found for item in adapter.passthrough if (found := _misfit(item, model, role))}
    if not wrong:
        return adapter
    keys = tuple(key for item in wrong for key in item.keys)
    if not allow_partial:
        first = next(iter(wrong))
        raise UnmatchedKeysError(
            f"{len(keys)} of {count(len(adapter.keys), 'key')} of the LoRA cannot be passed on to the {role} "
            f"({model.architecture.title})",
            where=str(adapter.path),
            values="; ".join(f"{item.keys[0]} ({why})" for item, why in list(wrong.items())[:3]),
            fix=f"leave such keys out with --allow-partial, or this one with --drop '{first.module}'",
        )
    return replace(
        adapter,
        passthrough=tuple(item for item in adapter.passthrough if item not in wrong),
        dropped=(*adapter.dropped, *keys),
        warnings=(
            *adapter.warnings,
            f"{count(len(keys), 'key', 'was/were')} left out, having no place in the {role}, e.g. {keys[0]}",
        ),
    )


def _misfit(item: Passthrough, model: Checkpoint | Architecture, role: str) -> str:
    """Why a change that is passed on does not fit a model; "" where it does."""
    if item.kind == "text_encoder":
        return ""
    if isinstance(model, Checkpoint):
        ref = model.tensors.get(item.param)
        shape = None if ref is None else ref.shape
    else:
        shape = model.modules.get(item.module)
        if shape is not None and item.param.endswith(".bias"):
            shape = shape[:1]
    if shape is None:
        return f"the {role} has no {item.param}"
    if item.shape is not None and tuple(item.shape) != tuple(shape):
        return f"{list(item.shape)}, the {role} has {list(shape)}"
    return ""


def _mismatch(own: Architecture, architecture: Architecture, role: str, path: Path, values: str) -> MismatchError:
    return MismatchError(
        f"This LoRA is for {own.title}, the {role} is {architecture.title}.",
        where=str(path),
        values=values,
        fix=f"use the {role} of the size that the LoRA was trained on",
    )
