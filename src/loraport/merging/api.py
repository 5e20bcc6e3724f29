"""`loraport.merge`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.containers.dtypes import PlainFormat
from loraport.engine.events import Listener, ignore
from loraport.merging.plan import make_merge_plan

if TYPE_CHECKING:
    from loraport.merging.run import MergeReport

PathLike = str | Path


def merge(
    lora: PathLike | AddedLora | Sequence[PathLike | AddedLora],
    into: PathLike,
    output: PathLike,
    *,
    strength: float = 1.0,
    nested: str | None = None,
    architecture: str = "auto",
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    scale: float | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    requantize: bool = False,
    dequantize: PlainFormat | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
) -> "MergeReport":
    """Bake LoRAs into a checkpoint, exactly and in its own layout. Memory is that of its largest tensor.

    Args:
        lora: what is baked in: one or several, each as FILE, FILE:STRENGTH or an `AddedLora`.
        into: the checkpoint: a file, a folder, an index, a hub id or zoo:NAME. DoRA and other kinds that are functions
            of the weights they change are taken of its weights.
        output: a file for a checkpoint in one file, else a folder, in which the files have the names they had.
        strength: factor on all of them; may be negative.
        nested: part of the checkpoint to change: generator or generator_ema of a .pt file, transformer_2 of a folder.
        architecture: its family, where that is not to be recognised.
        expert: which expert of Wan2.2, of folders and LoRAs that hold two.
        adapter: which LoRA, of files that hold several by name.
        scale: the LoRAs' own scale, alpha / rank, where their files do not say it or say it wrong.
        drop: regular expression; layers and keys that match are left out.
        allow_partial: leave out what cannot be matched, instead of refusing.
        requantize: also change weights of fp8, which are rounded anew; the report tells the loss.
        dequantize: also change quantised weights of every other kind (all, without `requantize`): they are written as
            plain numbers of this format, and what belonged to their old one is left out.
        overwrite: replace existing files.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; what stood under the output's names then still does. What is written so
            far waits in hidden folders beside them, where the same call goes on.
    """
    plan = make_merge_plan(
        added_loras(lora),
        into,
        strength=strength,
        nested=nested,
        architecture=architecture,
        expert=expert,
        adapter=adapter,
        scale=scale,
        drop=drop,
        allow_partial=allow_partial,
        requantize=requantize,
        dequantize=dequantize,
    )
    from loraport.merging.run import run_merge  # loads torch, after all refusals

    return run_merge(plan, output, overwrite=overwrite, on_event=on_event)
