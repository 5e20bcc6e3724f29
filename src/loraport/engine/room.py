"""Room that may not be there: said before the work, which goes on all the same."""

import os
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from loraport.engine.executor import Executor
from loraport.engine.options import RunOptions
from loraport.engine.plan import TransferPlan
from loraport.machine import free_memory
from loraport.wording import size

TORCH_BYTES = 190_000_000
"""That a process takes more once PyTorch is loaded; measured."""


def short_of_room(
    plans: Collection[TransferPlan], folder: Path | None, options: RunOptions, executor: Executor, *, twice: bool
) -> Iterator[str]:
    """What may be too large for this machine, in one sentence each.

    Args:
        plans: of all outputs.
        folder: where they go, which need not be there yet; None where nothing is written.
        options: the memory that layers may take.
        executor: on whose devices they are computed.
        twice: finished layers wait beside the outputs, and take as much again meanwhile.
    """
    need = sum(plan.output_bytes for plan in plans) * (2 if twice else 1)
    free = None if folder is None else _free(folder)
    if free is not None and need > free:
        more = ", including as much again for a while" if twice else ""
        yield f"up to {size(need)} will be written{more}, but the disk of {folder} has only {size(free)} free"
    slot = executor.slots()[0]
    largest = max((job.bytes_on(slot.device) for plan in plans for job in plan.jobs), default=0)
    needed, left = largest + (0 if "torch" in sys.modules else TORCH_BYTES), free_memory()
    if slot.device == "cpu" and options.executor != "ray" and needed > left:
        yield (
            f"computing the largest layer takes about {size(needed)}, and only {size(left)} of memory is free: "
            "if the system ends this program, close others, or use a method that needs less (--method direct)"
        )
    elif slot.device == "cpu" and options.max_memory is not None and largest > options.max_memory:
        yield (
            f"the largest layer takes {size(largest)}, more than the {size(options.max_memory)} of --max-memory: "
            "such layers are computed one at a time"
        )
    if slot.device.startswith("cuda") and slot.most is not None and largest > slot.most:
        yield (
            f"the largest layer takes about {size(largest)} on {slot.device}, more than the {size(slot.most)} that "
            "--max-memory leaves there for tensors: layers that find no room are computed on the CPU"
        )


def _free(folder: Path) -> int | None:
    """Bytes that are free where a folder is or will be; None where nobody says."""
    try:
        return shutil.disk_usage(next(each for each in (folder, *folder.parents) if os.path.isdir(each))).free
    except (OSError, StopIteration):
        return None
