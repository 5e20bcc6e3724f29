"""`loraport.resize` and `loraport.extract`."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loraport.engine.events import Listener, ignore
from loraport.engine.options import RunOptions
from loraport.engine.recipe import DType
from loraport.models.checkpoint import open_checkpoint
from loraport.resizing.extract import plan_extract
from loraport.resizing.resize import plan_resize
from loraport.resizing.rule import Amount

if TYPE_CHECKING:
    from loraport.resizing.cut import Resized

PathLike = str | Path


def resize(
    lora: PathLike,
    output: PathLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_size: int | str | None = None,
    to: str = "same-as-input",
    dtype: DType = "same",
    model: PathLike | None = None,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    scale: float | None = None,
    architecture: str = "auto",
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> "Resized":
    """Write a LoRA of any kind at another rank: the best approximation, with the share that it keeps.

    Exactly one of `rank`, `energy` and `max_size` is given.

    Args:
        lora: the file to read.
        output: the file to write.
        rank: the same for every layer; none gets more than it has.
        energy: share of the squared norm that each layer keeps, with the smallest rank that does.
        max_size: bytes of the file at most, or such as "300MB"; ranks go where they hold the most energy a byte.
        to: names in the output, as for `transfer`.
        dtype: number format of the output.
        model: the model it was trained on: needed for DoRA and other kinds that are functions of its weights.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for a file that names several.
        drop: regular expression; layers and keys that match are left out.
        allow_partial: leave out what cannot be matched.
        scale: the LoRA's own scale, alpha / rank, where its file does not say it or says it wrong.
        architecture: the family it is for, where that is not to be recognised.
        options: how to use the machine: device, workers, memory, cache; `overwrite` replaces an existing file.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; the output is then as it was before.
    """
    amount = Amount.model_validate({"rank": rank, "energy": energy, "max_size": max_size})
    task = plan_resize(
        lora,
        to=to,
        dtype=dtype,
        model=None if model is None else open_checkpoint(model, expert=expert, architecture=architecture),
        expert=expert,
        adapter=adapter,
        drop=drop,
        allow_partial=allow_partial,
        scale=scale,
        architecture=architecture,
    )
    from loraport.resizing.cut import carry_out  # loads torch, after all refusals

    return carry_out(task, amount, Path(output), options or RunOptions(), on_event)


def extract(
    source: PathLike,
    target: PathLike,
    output: PathLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_size: int | str | None = None,
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = "auto",
    expert: Literal["high", "low"] | None = None,
    to: str = "universal",
    dtype: DType = "same",
    drop: str | None = None,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> "Resized":
    """Write what makes one checkpoint of another as a LoRA: the difference, cut to a rank.

    Exactly one of `rank`, `energy` and `max_size` is given. Changes of biases, norms, convolutions and modulations are
    in the file as they are.

    Args:
        source: the checkpoint that the LoRA is for.
        target: what the LoRA makes of it.
        output: the file to write.
        rank: the same for every layer.
        energy: share of the squared norm that each layer keeps, with the smallest rank that does.
        max_size: bytes of the file at most, or such as "300MB"; ranks go where they hold the most energy a byte.
        nested_source: part of the source to read: generator or generator_ema of a .pt file, transformer_2 of a folder.
        nested_target: part of the target to read, in the same way.
        architecture: family of both, where that is not to be recognised.
        expert: which expert of Wan2.2, of folders that hold two.
        to: names in the output, as for `transfer`.
        dtype: number format of the factors; "same" for that of the target, bfloat16 where it has 8 bits.
        drop: regular expression; layers and parameters in whose names it is found are left out.
        options: how to use the machine: device, workers, memory, cache; `overwrite` replaces an existing file.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; the output is then as it was before.
    """
    amount = Amount.model_validate({"rank": rank, "energy": energy, "max_size": max_size})
    task = plan_extract(
        source,
        target,
        nested_source=nested_source,
        nested_target=nested_target,
        architecture=architecture,
        expert=expert,
        to=to,
        dtype=dtype,
        drop=drop,
    )
    from loraport.resizing.cut import carry_out  # loads torch, after all refusals

    return carry_out(task, amount, Path(output), options or RunOptions(), on_event)
