"""What a merge will do, by headers alone: which tensors of the checkpoint change, by what, and which files are written.

Nothing is cut to a rank: what is added is the exact update, each sum rounded once to the format of its tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from loraport.adapters.adapter import LoraAdapter, check_dropped
from loraport.adapters.added_lora import AddedLora
from loraport.adapters.parse import open_adapter
from loraport.adapters.passthrough import Passthrough
from loraport.adapters.refusals import NO_EXPERT
from loraport.adapters.update import LayerUpdate
from loraport.containers.arrange import refuse_shared
from loraport.containers.dtypes import PlainFormat
from loraport.containers.layout import Layout, layout_of
from loraport.containers.locate import expert_folders, locate
from loraport.containers.names import Expert
from loraport.containers.references import TensorRef, file_identity
from loraport.errors import MismatchError, UsageError
from loraport.merging.changes import MergedTensor, Term, as_stored, gone_with, said_of_the_whole
from loraport.models.checkpoint import AUTO, Checkpoint, open_checkpoint
from loraport.wording import count
from loraport.writable import check_output

_COPIES = 5  # of the largest tensor in float32 at its worst moment


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do.

    Attributes:
        model: the checkpoint.
        loras: each LoRA with the strength at which it is added.
        layout: the checkpoint's files.
        tensors: what changes, in the order of the files.
        gone: stored tensors that are left out: scales and settings of weights that become plain numbers.
        left_out: keys of the LoRAs that change nothing in the checkpoint.
        warnings: sentences for the user.
        identities: file -> its `file_identity` of every file that is read.
        changes: what the header of the output says of changes of another kind.
    """

    model: Checkpoint
    loras: tuple[tuple[AddedLora, LoraAdapter, float], ...]
    layout: Layout
    tensors: tuple[MergedTensor, ...]
    gone: tuple[TensorRef, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    identities: Mapping[Path, str]
    changes: tuple[Mapping[str, object], ...] = ()

    @property
    def grown_bytes(self) -> int:
        """By how much the files become larger, headers aside."""
        added = sum(put.nbytes - put.ref.own_bytes for tensor in self.tensors for put in tensor.puts)
        return added - sum(ref.own_bytes for ref in self.gone)

    @property
    def output_bytes(self) -> int:
        """What is written."""
        return sum(file.stat().st_size for file in (*self.layout.files, *self.layout.beside)) + self.grown_bytes

    @property
    def peak_bytes(self) -> int:
        """Memory for the tensors in work, at most."""
        return _COPIES * 4 * max(prod(tensor.ref.shape) for tensor in self.tensors)

    @property
    def requantized(self) -> tuple[MergedTensor, ...]:
        """What changes and stays in 8 bits, so that it is rounded anew."""
        return tuple(tensor for tensor in self.tensors if tensor.coarse and tensor.plain is None)

    @property
    def dequantized(self) -> tuple[MergedTensor, ...]:
        """What becomes plain numbers."""
        return tuple(tensor for tensor in self.tensors if tensor.plain is not None)

    def placed(self, output: Path, *, overwrite: bool) -> dict[Path, Path]:
        """Each file of the checkpoint with the name that it gets.

        Args:
            output: a file, or a folder where the checkpoint is one.
            overwrite: whether files of these names may be replaced.

        Raises:
            FileError: one of them may not.
        """
        places, inputs = self.layout.placed(output), list(self.inputs())
        for place in places.values():
            check_output(place, inputs, overwrite=overwrite)
        return places

    def inputs(self) -> Iterator[tuple[str, Path]]:
        """Every file that is read, as (role, file)."""
        yield from (("checkpoint", file) for file in (*self.layout.files, *self.layout.beside))
        yield from (("input LoRA", adapter.path) for _, adapter, _ in self.loras)
        yield from (("source", file) for file in self.identities)  # of which a change of another kind is made


def make_merge_plan(
    loras: Sequence[AddedLora],
    into: str | Path,
    *,
    strength: float = 1.0,
    nested: str | None = None,
    architecture: str = AUTO,
    expert: Expert | None = None,
    adapter: str | None = None,
    scale: float | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    requantize: bool = False,
    dequantize: PlainFormat | None = None,
) -> MergePlan:
    """Match LoRAs against a checkpoint, reading headers only.

    Args:
        loras: what is added, each with a strength of its own and choices that go before the common ones.
        into: the checkpoint.
        strength: factor on all of them.
        nested: which part of a torch file or folder.
        architecture: its family; "auto" to recognise it.
        expert: which expert of Wan2.2, of folders and LoRAs that hold two.
        adapter: which LoRA, of files that hold several by name.
        scale: the LoRAs' own scale, where their files do not say it.
        drop: regular expression; layers and keys that match are left out.
        allow_partial: leave out what cannot be matched.
        requantize: write weights of fp8 too, which are rounded coarsely.
        dequantize: the format in which the other quantised weights that change are written, as plain numbers.

    Raises:
        LoraportError: a file cannot be read, or they do not fit each other.
        UnsupportedError: a weight that changes is quantised, and nothing says what is to become of it.
    """
    _check_request(loras, strength, expert, adapter)
    model = open_checkpoint(into, nested=nested, expert=expert, architecture=architecture)
    layout = layout_of(locate(into, nested=nested, expert=expert))
    opened = []
    for given in loras:
        found = open_adapter(
            given.file,
            model,
            role="checkpoint",
            expert=given.expert or expert,
            adapter=given.adapter or adapter,
            drop=drop,
            allow_partial=allow_partial,
            scale=given.scale or scale,
        )
        found.check_weights()
        opened.append((given, found, strength * given.strength))
    check_dropped(drop, (found for _, found, _ in opened))
    tensors, left_out = _gather(model, opened)
    if not tensors:
        raise MismatchError("the LoRA changes nothing in the checkpoint", where=loras[0].file, values=str(into))
    tensors = as_stored(tensors, requantize, dequantize)
    gone = gone_with(tensors, layout)
    refuse_shared([put.ref for tensor in tensors for put in tensor.puts])
    idle = NO_EXPERT if expert_folders(into) else None  # then the expert chose the folder
    said = [note for _, found, _ in opened for note in found.warnings if idle is None or idle not in note]
    warnings = [*model.notes, *said]
    if any(tensor.plain for tensor in tensors) and (of_all := said_of_the_whole(layout)) is not None:
        warnings.append(of_all)
    if left_out:
        what = count(len(left_out), "key", "changes/change")
        warnings.append(f"{what} a text encoder, which is not part of it: {left_out[0]}")
    dropped = [key for _, found, _ in opened for key in found.dropped]
    if dropped and allow_partial:
        warnings.append(f"{count(len(dropped), 'key', 'was/were')} left out, e.g. {dropped[0]}")
    files = {*layout.files, *layout.beside, *(found.path for _, found, _ in opened)}
    return MergePlan(
        model,
        tuple(opened),
        layout,
        tensors,
        gone,
        (*left_out, *dropped),
        tuple(warnings),
        {file: file_identity(file) for file in files},
    )


def _check_request(loras: Sequence[AddedLora], strength: float, expert: Expert | None, adapter: str | None) -> None:
    """Raise UsageError where nothing would be added, or the same twice."""
    if not loras:
        raise UsageError("there is nothing to merge", fix="name a LoRA")
    seen = set()
    for given in loras:
        factor = strength * given.strength
        if factor == 0.0:
            raise UsageError(
                "there is nothing to merge",
                where=given.file,
                values=f"strength {factor:g}",
                fix="give a strength that is not 0, or leave the LoRA out",
            )
        file, high_or_low, name = given.identity
        chosen = file, high_or_low or expert, name or adapter
        if chosen in seen:
            raise UsageError(
                "a LoRA is given twice", values=given.file, fix="give it once, with the strengths added up"
            )
        seen.add(chosen)


def _gather(
    model: Checkpoint, loras: Sequence[tuple[AddedLora, LoraAdapter, float]]
) -> tuple[tuple[MergedTensor, ...], list[str]]:
    """What changes by stored tensor, in the checkpoint's order; and keys that change another model's."""
    terms: list[tuple[str, Term]] = []
    left_out: list[str] = []
    for _, adapter, factor in loras:
        changes: dict[str, LayerUpdate | Passthrough] = {f"{name}.weight": it for name, it in adapter.layers.items()}
        for item in adapter.passthrough:
            if item.kind == "text_encoder":
                left_out += item.keys
                continue
            changes[item.param] = item
        for param, what in changes.items():
            terms.append((param, Term(param, model.tensors[param].rows, what, factor)))
    return whole_tensors(model, terms), left_out


def whole_tensors(model: Checkpoint, changes: Sequence[tuple[str, Term]]) -> tuple[MergedTensor, ...]:
    """What changes by stored tensor, in the checkpoint's order.

    Args:
        model: the checkpoint.
        changes: a parameter of it, and what is added there.
    """
    terms: dict[tuple[object, ...], list[Term]] = {}
    for param, term in changes:
        terms.setdefault(_place(model.tensors[param]), []).append(term)
    whole: dict[tuple[object, ...], TensorRef] = {}
    for ref in model.tensors.values():
        if _place(ref) in terms:
            rows = max(ref.shape[0] if ref.shape else 0, *(end for _, end in ref.rows or ((0, 0),)))
            before = whole.get(_place(ref))
            rows = rows if before is None or not before.shape else max(rows, before.shape[0])
            shape = (rows, *ref.shape[1:]) if ref.shape else ()
            whole[_place(ref)] = replace(ref, rows=None, shape=shape)
    return tuple(MergedTensor(ref, tuple(terms[place])) for place, ref in whole.items())


def _place(ref: TensorRef) -> tuple[object, ...]:
    return ref.file, ref.nest, ref.key
