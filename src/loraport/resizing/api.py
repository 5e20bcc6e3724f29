"""`loraport.resize` and `loraport.extract`."""

from pathlib import Path
from typing import Literal

from loraport.arguments import check_arguments
from loraport.engine.events import Listener, ignore
from loraport.engine.options import RunOptions
from loraport.engine.recipe import DType
from loraport.resizing.extract import plan_extract
from loraport.resizing.report import Resized
from loraport.resizing.resize import plan_resize
from loraport.resizing.rule import Amount

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
) -> Resized:
    """Write a LoRA of any kind at another rank: the best approximation, and the share that it keeps.

    Give exactly one of `rank`, `energy` and `max_size`.

    Args:
        lora: file to read.
        output: file to write.
        rank: same rank for every layer; no layer gets more than it has.
        energy: share of the squared norm to keep in each layer, with the smallest rank that does.
        max_size: most bytes of the file, as a number or such as "300MB"; ranks go where they hold the most energy per
            byte.
        to: key names in the output, as for `transfer`.
        dtype: number format of the output.
        model: model it was trained on; needed for DoRA and other kinds that are functions of its weights.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: name of the LoRA to use, for a file that holds several.
        drop: regular expression; layers and keys that match are left out.
        allow_partial: leave out what cannot be matched.
        scale: the LoRA's own scale (alpha / rank), if its file does not state it or states it wrongly.
        architecture: family of the LoRA, if it should not be detected.
        options: how to use the machine: device, workers, memory, cache; `overwrite` replaces an existing file.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; the output is then left as it was.
    """
    check_arguments(resize, locals())
    amount = Amount.model_validate({"rank": rank, "energy": energy, "max_size": max_size})
    task = plan_resize(
        lora,
        to=to,
        dtype=dtype,
        model=model,
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
) -> Resized:
    """Write what turns one checkpoint into another as a LoRA: the difference, cut to a rank.

    Give exactly one of `rank`, `energy` and `max_size`. Changes of biases, norms, convolutions and modulations are
    in the file as they are.

    Args:
        source: checkpoint that the LoRA is for.
        target: checkpoint that the LoRA turns it into.
        output: file to write.
        rank: same rank for every layer.
        energy: share of the squared norm to keep in each layer, with the smallest rank that does.
        max_size: most bytes of the file, as a number or such as "300MB"; ranks go where they hold the most energy per
            byte.
        nested_source: part of the source to read, such as generator or generator_ema in a .pt file, or transformer_2 in
            a folder.
        nested_target: part of the target to read, chosen in the same way.
        architecture: family of the models, if it should not be detected.
        expert: Wan2.2 expert to use, for folders that hold both.
        to: key names in the output, as for `transfer`.
        dtype: number format of the factors; "same" for that of the target, or bfloat16 if it has 8 bits.
        drop: regular expression; layers and parameters whose names match are left out.
        options: how to use the machine: device, workers, memory, cache; `overwrite` replaces an existing file.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; the output is then left as it was.
    """
    check_arguments(extract, locals())
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
