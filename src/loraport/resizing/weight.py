"""The work on a weight that is to be cut to a rank: singular values, or the best factors of a rank."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.adapters.stored_weights import StoredWeight
from loraport.containers.tensors import take_rows
from loraport.core.algorithm import ALGORITHM
from loraport.core.lowrank import LowRank
from loraport.core.operator import Operator, wide
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import singular_values, thin_svd
from loraport.core.truncation import truncated_svd
from loraport.engine.executor import Slot, threads_for
from loraport.engine.on_device import with_the_cpu_behind
from loraport.engine.reading import InputReader
from loraport.errors import NumericalError
from loraport.machine import cores
from loraport.resizing.job import EXACT, WeightJob
from loraport.store.index import entry_key
from loraport.store.store import Store

VERSION = 4  # raised whenever the same work would give other bytes than before


@dataclass(frozen=True)
class WeightResult:
    """What became of it.

    Attributes:
        job: the work.
        values: singular values, the largest first; None where factors were wanted.
        update: the factors; None where singular values were wanted.
        norm: of the matrix.
        energy_kept: share of its square that the factors hold.
        seconds: time spent.
        cached: taken from an earlier run.
        device: where it was computed.
    """

    job: WeightJob
    values: Float[Tensor, " q"] | None
    update: LowRank | None
    norm: float
    energy_kept: float
    seconds: float
    cached: bool
    device: str


@dataclass(frozen=True)
class Cutter:
    """A function of one job and the slot that it is done in. Picklable.

    Args:
        store: where results are kept.
        reader: of the input files.
    """

    store: Store
    reader: InputReader

    def __call__(self, job: WeightJob, slot: Slot) -> WeightResult:
        """Do one job; the CPU takes over where a device has too little memory."""
        return with_the_cpu_behind(partial(self._run, job), slot.device, threads=threads_for(job, "cpu", cores()))[0]

    def result_keys(self, job: WeightJob) -> list[str | None]:
        """Under which key the job's result is kept; None where a digest is not remembered. Nothing is read."""
        digests = self.reader.known_digests(job.refs)
        return [None if digests is None else _key(job, digests)]

    def elsewhere(self, store: Store, reader: InputReader) -> "Cutter":
        """The same work on a machine that is sent what it reads."""
        return Cutter(store, reader)

    def _run(self, job: WeightJob, device: torch.device) -> WeightResult:
        began = time.perf_counter()
        refs = job.refs
        try:
            key = _key(job, {role: self.reader.digest(ref, hold=job.matrix.held) for role, ref in refs.items()})
            kept = self.store.get("result", key, expect=None)
            if kept is None:
                tensors = _compute(_operator(job, self.reader, device), job)
                self.store.put("result", key, tensors, {})
            else:
                tensors = dict(kept)
        finally:
            self.reader.drop(refs.values())
        wanted = job.rank is not None
        return WeightResult(
            job,
            None if wanted else tensors["S"],
            LowRank(tensors["B"], tensors["A"]) if wanted else None,
            float(tensors["norm"]),
            float(tensors["kept"]),
            time.perf_counter() - began,
            kept is not None,
            str(device),
        )


def layers_of(weight: StoredWeight, update: LowRank) -> dict[str, LowRank]:
    """The update of every layer of a weight; all of them share one factor."""
    return {name: LowRank(take_rows(update.B, rows), update.A) for name, rows in weight.places.items()}


def _operator(job: WeightJob, reader: InputReader, device: torch.device) -> Operator:
    matrix = job.matrix.read(reader)
    if isinstance(matrix, LowRank):
        if matrix.thin and matrix.rank < min(matrix.shape):
            return matrix.to(device=device)
        matrix = matrix.dense()
    return DenseOperator(matrix.to(device))


def _compute(op: Operator, job: WeightJob) -> dict[str, Tensor]:
    norm = op.norm()
    if not norm < float("inf"):
        raise NumericalError("a weight holds NaN or infinity", where=job.weight.name, fix="use another copy, or --drop")
    facts = {"norm": torch.tensor(norm, dtype=torch.float64), "kept": torch.tensor(1.0, dtype=torch.float64)}
    if job.rank is None:
        return facts | {"S": _values(op, job.weight.name)}
    if isinstance(op, LowRank) or min(op.shape) > EXACT:
        cut = truncated_svd(op, rank=job.rank, name=job.weight.name)
        update, kept = cut.update, cut.energy_kept
    else:
        basis = thin_svd(op.dense(), name=job.weight.name)
        update = LowRank.from_svd(basis.U[:, : job.rank], basis.S[: job.rank], basis.Vh[: job.rank])
        kept = min(float(wide(basis.S[: job.rank]).square().sum()) / norm**2, 1.0) if norm > 0 else 1.0
    facts["kept"] = torch.tensor(kept, dtype=torch.float64)
    return facts | {"B": update.B.cpu().contiguous(), "A": update.A.cpu().contiguous()}


def _values(op: Operator, name: str) -> Float[Tensor, " q"]:
    if isinstance(op, LowRank):
        return op.svd()[1].cpu()
    return singular_values(op.dense(), name=name)


def _key(job: WeightJob, digests: Mapping[str, str]) -> str:
    return entry_key(
        {
            "cut": VERSION,
            "algorithm": ALGORITHM,
            "digests": dict(digests),
            "matrix": job.matrix.identity(),
            "rows": [list(map(list, rows)) for rows in job.weight.places.values()],
            "shape": list(job.shape),
            "rank": job.rank,
        }
    )
