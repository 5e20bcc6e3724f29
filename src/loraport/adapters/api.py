"""The public functions about one LoRA file. Each does what the command of the same name does, and returns instead of
printing."""

from pathlib import Path
from typing import Literal

from loraport.adapters.arrival import Arrival, rows_of
from loraport.adapters.checks import Check
from loraport.adapters.convert import Conversion, convert_adapter
from loraport.adapters.describe import FileDescription, describe
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.models.checkpoint import open_checkpoint

PathLike = str | Path


def inspect(path: PathLike) -> FileDescription:
    """Say what a file is, from its header: dialect, model, ranks, scales, and what is odd. Raises FileError."""
    return describe(path)


def convert(
    lora: PathLike,
    output: PathLike,
    *,
    to: str = "universal",
    model: PathLike | None = None,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    scale: float | None = None,
    overwrite: bool = False,
    architecture: str = "auto",
) -> Conversion:
    """Write a LoRA in another dialect without changing what it does.

    Args:
        lora: the file to read.
        output: the file to write.
        to: names in the output: `universal`, `diffusers`, `kohya`, `original`, `fastvideo` or `same-as-input`.
        model: the model it belongs to, to check the names and sizes against; needed for DoRA and other kinds that are
            functions of the weights they were trained on.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for a file that names several.
        drop: regular expression; layers and keys that match are left out.
        allow_partial: leave out what cannot be matched.
        scale: the LoRA's own scale, alpha / rank, where its file does not say it or says it wrong.
        overwrite: replace an existing file.
        architecture: the family it is for, where that is not to be recognised: its name, or `any` for one that is not
            known, whose layers are those of `model`.

    Raises:
        LoraportError: see `loraport.errors`; the output is then as it was before.
    """
    return convert_adapter(
        lora,
        output,
        to=to,
        model=None if model is None else open_checkpoint(model, expert=expert, architecture=architecture),
        expert=expert,
        adapter=adapter,
        drop=drop,
        allow_partial=allow_partial,
        scale=scale,
        overwrite=overwrite,
        architecture=architecture,
    )


def verify(
    path: PathLike,
    *,
    model: PathLike | None = None,
    load: bool = True,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    architecture: str = "auto",
    consumer: str | None = None,
) -> tuple[Check, ...]:
    """Check a LoRA: header against content, every number finite, every key known, and the loader of diffusers.

    Args:
        path: the file.
        model: also check that it fits this model.
        load: also hand the file to diffusers' own loader, if installed.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for a file that names several.
        architecture: family of the model, where that is not to be recognised: its name, or `any` for one that is not
            known.
        consumer: also say, by what is known of a program, whether everything would arrive there; its name.

    Returns:
        One check a line; `passed` is False where something is wrong and None for a remark.

    Raises:
        LoraportError: the file is damaged, no plain LoRA, or holds several LoRAs of which none was named.
    """
    fits = None if model is None else open_checkpoint(model, expert=expert, architecture=architecture)
    rows = [] if consumer is None else rows_of(consumer)
    checks = verify_adapter(path, fits, load=load, expert=expert, adapter=adapter)
    if not rows or any(check.passed is False for check in checks):
        return checks
    lora = open_adapter(path, fits, role="model", expert=expert, adapter=adapter, architecture=architecture)
    told = [Arrival(lora, row) for row in rows]
    return checks + tuple(Check(f"arrives in {each.consumer.name}", each.arrives, each.summary) for each in told)
