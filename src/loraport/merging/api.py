"""`loraport.merge`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.arguments import check_arguments
from loraport.containers.dtypes import PlainFormat
from loraport.engine.events import Listener, ignore
from loraport.merging.plan import make_merge_plan
from loraport.merging.report import MergeReport

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
) -> MergeReport:
    """Bake LoRAs into a checkpoint, exactly and in its own layout. It takes the memory of the largest tensor.

    Args:
        lora: LoRAs to bake in: one or several, each as FILE, FILE:STRENGTH or an `AddedLora`.
        into: checkpoint to merge into: a file, a folder, an index, a hub id or zoo:NAME. DoRA and other kinds that are
            functions of the weights they change are computed from its weights.
        output: file to write for a checkpoint in one file, otherwise a folder, in which the files keep their names.
        strength: factor on all LoRAs; may be negative.
        nested: part of the checkpoint to change, such as generator or generator_ema in a .pt file, or transformer_2 in
            a folder.
        architecture: family of the checkpoint, if it should not be detected.
        expert: Wan2.2 expert to use, for folders and LoRAs that hold both.
        adapter: name of the LoRA to use, for files that hold several.
        scale: the LoRAs' own scale (alpha / rank), if their files do not state it or state it wrongly.
        drop: regular expression; layers and keys that match are left out.
        allow_partial: leave out what cannot be matched, instead of raising an error.
        requantize: also change fp8 weights, which are rounded again; the report states the loss.
        dequantize: also change quantised weights of every other kind (of all kinds, without `requantize`). They are
            written as plain numbers of this format, and what belonged to their old format is left out.
        overwrite: replace existing files.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; existing files under the output's names are then unchanged. What is
            written so far waits in hidden folders beside them, and the same call resumes from it.
    """
    check_arguments(merge, locals())
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
