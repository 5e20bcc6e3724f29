"""A job on many LoRAs, from their names to what became of each. Torch comes with the work, after the plan."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from loraport.engine.events import Listener
from loraport.engine.many.asked import EXISTS, Asked, check_options, check_skip
from loraport.engine.many.plan import make_many_plan
from loraport.engine.many.report import ManyReport, Outcome
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.engine.results import TransferReport
from loraport.errors import LoraportError
from loraport.writable import check_folder


def carry_many(
    asked: Sequence[Asked],
    make: Callable[[str], Recipe],
    folder: Path,
    options: RunOptions,
    on_event: Listener,
    *,
    skip_existing: bool,
    also: Iterable[tuple[str, Path]] = (),
) -> ManyReport:
    """Transfer many LoRAs, as `loraport.transfer_many`.

    Args:
        asked: of `find_loras`.
        make: the recipe for a LoRA that is named.
        folder: where the outputs go.
        options: how to use the machine.
        on_event: told about every step, from this thread.
        skip_existing: leave a LoRA alone whose output is there.
        also: further files that the command reads, as (role, path): no output may replace one of them.

    Raises:
        LoraportError: what is wrong with the settings, the machine or the models, and so with every LoRA.
    """
    check_options(options)
    check_skip(options, skip_existing=skip_existing)
    wanted = {n: each for n, each in enumerate(asked) if not (skip_existing and each.output.exists())}
    for each in list(wanted.values())[:1]:
        check_folder(folder / each.output.name, "output")  # said once, instead of for each LoRA
    plan = make_many_plan({n: each.lora for n, each in wanted.items()}, make)
    done: dict[int, TransferReport | LoraportError] = dict(plan.failures)
    if plan.plans:
        from loraport.engine.many.run import run_many

        done = run_many(plan, {n: each.output for n, each in wanted.items()}, folder, options, on_event, also=also)
    reports = {n: found for n, found in done.items() if isinstance(found, TransferReport)}
    errors = {n: found for n, found in done.items() if isinstance(found, LoraportError)}
    return ManyReport(
        tuple(
            Outcome(one.lora, one.output, reports.get(n), errors.get(n), None if n in wanted else EXISTS)
            for n, one in enumerate(asked)
        )
    )
