"""The public functions about one LoRA file. Each does what the command of the same name does, and returns instead of
printing."""

from typing import Literal

from loraport.adapters.arrival import Arrival, rows_of
from loraport.adapters.checks import Check, Verification
from loraport.adapters.convert import PathLike, convert
from loraport.adapters.describe import FileDescription, describe
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.arguments import check_arguments
from loraport.models.checkpoint import open_checkpoint

__all__ = ["convert", "inspect", "verify"]


def inspect(path: PathLike) -> FileDescription:
    """Describe a file from its header: dialect, model, ranks, scales, and anything odd.

    A file that can be read and not used is described too, with the reason in `refused`.

    Raises:
        FileError: it is missing or damaged.
        UsageError: no bundled model or LoRA has that name.
    """
    check_arguments(inspect, locals())
    return describe(path)


def verify(
    path: PathLike,
    *,
    model: PathLike | None = None,
    load: bool = True,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    architecture: str = "auto",
    consumer: str | None = None,
) -> Verification:
    """Check a LoRA: header against content, every number finite, every key known, and the loader of diffusers.

    Args:
        path: LoRA file.
        model: also check that the LoRA fits this model.
        load: also load the file with diffusers, if installed.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: name of the LoRA to check, for a file that holds several.
        architecture: family of the model, if it should not be detected; `any` for an unknown one.
        consumer: name of a program; also check, by what is known of it, whether it would load everything.

    Returns:
        Every check, and whether all is well. `passed` of a check is False where something is wrong and None for a
            remark.

    Raises:
        LoraportError: the file is damaged, not a plain LoRA, or holds several LoRAs of which none was named.
    """
    check_arguments(verify, locals())
    fits = None if model is None else open_checkpoint(model, expert=expert, architecture=architecture)
    rows = [] if consumer is None else rows_of(consumer)
    checks = verify_adapter(path, fits, load=load, expert=expert, adapter=adapter)
    found = Verification(str(path), checks)
    if not rows or not found.ok:
        return found
    lora = open_adapter(path, fits, role="model", expert=expert, adapter=adapter, architecture=architecture)
    told = [Arrival(lora, row) for row in rows]
    arrivals = tuple(Check(f"arrives in {each.consumer.name}", each.arrives, each.summary) for each in told)
    return Verification(str(path), checks + arrivals)
