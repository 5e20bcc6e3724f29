"""Carry out a merge: copy the checkpoint's files, with other numbers in the tensors that change.

One tensor is in memory at a time. All files get their names when everything has been written, or none does. If it is
stopped, the files wait under hidden names, and the same merge resumes with them (`journal.py`).
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from loraport.adapters.passthrough import Passthrough
from loraport.containers.arrange import Put
from loraport.containers.encoded import encoded, encoded_plainly
from loraport.containers.references import file_identity
from loraport.containers.rewrite import Rewriting, rewriting, room_beside
from loraport.containers.tensors import TensorRef, read_float, read_numbers
from loraport.core.operator import norm
from loraport.engine.events import Listener, Warned, Warnings, Written, ignore
from loraport.engine.reading import InputReader
from loraport.engine.surroundings import usual_torch
from loraport.errors import FileError, NumericalError
from loraport.files import atomic_paths
from loraport.merging.changes import MergedTensor, Term
from loraport.merging.journal import Journal, Loss, job_of
from loraport.merging.plan import MergePlan
from loraport.merging.records import counted_twice, headers_of, indexes_of, told_of
from loraport.merging.report import MergeReport
from loraport.models.joining import parts
from loraport.models.placement import Rows
from loraport.partial import forget, will_stay
from loraport.store.digests import DigestMemo
from loraport.wording import percent

_STRIP = 1 << 15  # numbers that are compared at a time: they stay in the processor's cache, and in one thread of torch
_MUCH = 0.5  # rounding of this size, relative to the update, is warned of


@usual_torch()
def run_merge(
    plan: MergePlan, output: str | Path, *, overwrite: bool = False, on_event: Listener = ignore
) -> MergeReport:
    """Write the merged checkpoint.

    Args:
        plan: what is to be done.
        output: a file, or a folder where the checkpoint is one.
        overwrite: whether files of these names may be replaced; the checkpoint's own and the LoRA's never.
        on_event: told about every step.

    Raises:
        FileError: it cannot be written, or an input changed meanwhile. What stood under the names stands there again;
            what is written waits beside them for the same merge.
        NumericalError: a sum does not fit its format, or a LoRA holds NaN or infinity.
    """
    began = time.perf_counter()
    path = Path(output)
    places = plan.placed(path, overwrite=overwrite)
    told = told_of(plan)
    warn = Warnings(on_event)
    for message in (*plan.warnings, *counted_twice(plan, told)):
        warn(message)
    losses, continued = _write(plan, places, told, overwrite, on_event)
    if not any(loss.change for loss in losses):
        warn("every update is zero, or too small for these numbers, so the output is the checkpoint as it was")
    most = max(losses, key=lambda loss: loss.share)
    changed = math.sqrt(sum(loss.change**2 for loss in losses))
    lost = math.sqrt(sum(loss.error**2 for loss in losses))
    if lost > _MUCH * changed > 0:
        finer = ", or merge with --dequantize bfloat16" if plan.requantized else ""
        warn(
            f"rounding to the checkpoint's numbers changes the weights by {percent(lost / changed)} of what the "
            f"LoRA changes, so much of its effect may be lost; load it beside the model instead{finer}"
        )
    return MergeReport(
        output=path,
        files=tuple(places.values()),
        tensors=len(plan.tensors),
        untouched=len(plan.model.tensors) + len(plan.model.unknown) - len(plan.tensors),
        requantized=len(plan.requantized),
        dequantized=len(plan.dequantized),
        grown_bytes=sum(new.stat().st_size - old.stat().st_size for old, new in places.items()),
        lost=lost / changed if changed else 0.0,
        lost_most=most.share,
        lost_in=most.name,
        left_out=plan.left_out,
        warnings=tuple(warn.told),
        continued=continued,
        seconds=time.perf_counter() - began,
    )


def _write(
    plan: MergePlan,
    places: Mapping[Path, Path],
    told: Sequence[Mapping[str, object]],
    overwrite: bool,
    on_event: Listener,
) -> tuple[list[Loss], int]:
    """The files under their names; returns what each tensor lost, and how many were there from an earlier run."""
    reader = InputReader(DigestMemo(None), plan.identities)
    total = plan.output_bytes
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        on_event(Written("writing", done, total))

    puts: dict[Path, list[Put]] = {file: [] for file in places}
    gone: dict[Path, list[TensorRef]] = {file: [] for file in places}
    for tensor in plan.tensors:
        for put in tensor.puts:
            puts[put.ref.file].append(put)
    for ref in plan.gone:
        gone[ref.file].append(ref)
    headers, indexes = headers_of(plan, told), indexes_of(plan)
    beside = sum(room_beside(puts[file], gone[file]) for file in places)
    losses: list[Loss] = []
    continued = 0
    journals: dict[Path, Journal] = {}
    copies: dict[Path, Rewriting] = {}
    with (
        atomic_paths(
            list(places.values()), need_bytes=total + beside, overwrite=overwrite, job=job_of(plan, told)
        ) as temporaries,
        _kept_if_stopped(plan, temporaries, journals, on_event),
    ):
        with contextlib.ExitStack() as stack:
            for file, place in places.items():
                journals[file] = stack.enter_context(contextlib.closing(Journal(temporaries[place])))
            for file, place in places.items():
                if file in indexes:
                    temporaries[place].write_text(indexes[file], encoding="utf-8")
                    continue
                copy = rewriting(file, temporaries[place], puts[file], gone[file], headers.get(file), wrote)
                copies[file] = stack.enter_context(copy)
            for tensor in plan.tensors:
                there = _taken_over(tensor, copies, journals)
                continued += there is not None
                losses.append(there or _merge(tensor, copies, journals))
                wrote(sum(put.nbytes for put in tensor.puts))
        reader.check_unchanged()
    return losses, continued


@contextlib.contextmanager
def _kept_if_stopped(
    plan: MergePlan, temporaries: Mapping[Path, Path], journals: Mapping[Path, Journal], on_event: Listener
) -> Iterator[None]:
    """Say that what is written stays, unless it is of no use: nothing yet, or a merge that will not come again."""
    try:
        yield
    except BaseException as error:
        first = next(iter(temporaries.values()))
        nothing = bool(journals) and not any(map(len, journals.values()))
        if nothing or isinstance(error, NumericalError) or _changed(plan):
            for temporary in temporaries.values():
                forget(temporary)
        elif will_stay(first):
            where = first.parent if len(temporaries) == 1 else first.parent.with_name(".*.partial")
            on_event(
                Warned(
                    f"what is written so far stays in {where} for the same merge to resume; remove it if you will "
                    "not resume"
                )
            )
        raise


def _changed(plan: MergePlan) -> bool:
    """Whether an input is another one than that of the plan, so that this merge cannot come again."""
    try:
        return any(file_identity(file) != planned for file, planned in plan.identities.items())
    except FileError:  # gone with its disk, perhaps, and may come back
        return False


def _taken_over(
    tensor: MergedTensor, copies: Mapping[Path, Rewriting], journals: Mapping[Path, Journal]
) -> Loss | None:
    """What a tensor lost that an earlier run wrote, if all of it is there as it was written."""
    loss = None
    for put in tensor.puts:
        known = journals[put.ref.file].find(put.ref)
        if known is None or not copies[put.ref.file].holds(put.ref, known[0]):
            return None
        loss = known[1]
    return loss


def _merge(tensor: MergedTensor, copies: Mapping[Path, Rewriting], journals: Mapping[Path, Journal]) -> Loss:
    """Write one tensor with everything added to it."""
    before = read_numbers(tensor.ref)
    exact = before.clone()
    for term in tensor.terms:
        _add(exact, term)
    change = _distance(exact, before)
    made = encoded(tensor.ref, exact) if tensor.plain is None else encoded_plainly(tensor.ref, exact, tensor.plain)
    del before
    error = _distance(made.numbers, exact)
    if not math.isfinite(error):
        raise NumericalError(
            f"{tensor.terms[0].name} no longer fits into {tensor.plain or tensor.ref.dtype}",
            where=tensor.ref.name,
            values=f"largest number {float(exact.abs().max()):.3g}",
            fix="use a smaller --strength or --factor, or a copy of the checkpoint in another format (bf16)",
        )
    loss = Loss(tensor.terms[0].name, change, error)
    for ref, stored in made.tensors:
        journals[ref.file].add(ref, copies[ref.file].put(ref, stored), loss)
    return loss


def _add(whole: Float[Tensor, "..."], term: Term) -> None:
    """Add a term to its rows, in place."""
    what = term.what
    if isinstance(what, Passthrough):
        change = read_float(what.ref) * what.scale if what.as_stored else what.load()
        _onto(whole, term.rows, change.to(whole.dtype) * term.factor)
        return
    update = what.load().to(whole.dtype).scaled(term.factor)
    if update.rank >= min(update.shape):  # a whole matrix
        _onto(whole, term.rows, update.dense())
        return
    for place, part in parts(term.rows or ((0, len(whole)),), update.B):
        whole[place].view(len(part), -1).addmm_(part, update.A)


def _onto(whole: Float[Tensor, "..."], rows: Rows | None, change: Float[Tensor, "..."]) -> None:
    if rows is None:
        whole += change.reshape(whole.shape)
        return
    for place, part in parts(rows, change):
        whole[place] += part.reshape(whole[place].shape)


def _distance(one: Float[Tensor, "..."], two: Float[Tensor, "..."]) -> float:
    """Frobenius norm of the difference, which is formed in strips only."""
    strips = zip(one.reshape(-1).split(_STRIP), two.reshape(-1).split(_STRIP), strict=True)
    return math.sqrt(sum(norm(a.double() - b.double()) ** 2 for a, b in strips))
