"""Many weights that are to be cut to ranks and written as a LoRA: what is known of it by headers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraport.adapters.dialect import Dialect, profile_of
from loraport.adapters.passthrough import Passthrough
from loraport.containers.dtypes import FORMATS, name_of
from loraport.models.architecture import Architecture
from loraport.resizing.job import WeightJob
from loraport.resizing.rule import Amount
from loraport.writable import check_output


@dataclass(frozen=True)
class Task:
    """What is cut, and how it is written.

    Attributes:
        what: `resize` or `extract`.
        jobs: a weight each, for singular values.
        passthrough: changes that are written as they are.
        architecture: the model.
        to: output profile.
        dialect: of the input, for "same-as-input".
        dtype: torch name of the factors' dtype.
        metadata: the header, without what this run adds.
        warnings: sentences for the user.
        identities: file -> its `file_identity` of every file that is read.
        inputs: what may not be replaced, as (role, file).
    """

    what: str
    jobs: tuple[WeightJob, ...]
    passthrough: tuple[Passthrough, ...]
    architecture: Architecture
    to: str
    dialect: Dialect | None
    dtype: str
    metadata: Mapping[str, str]
    warnings: tuple[str, ...]
    identities: Mapping[Path, str]
    inputs: tuple[tuple[str, Path], ...]

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        """Raise FileError where the output would replace an input, or a file that nobody gave up."""
        check_output(output, self.inputs, overwrite=overwrite)

    def cost_of(self, amount: Amount) -> float:
        """Operations, roughly: for each weight its singular values, where they are needed, and its factors."""
        return sum(job.cost for job in self.jobs) * passes(amount)

    def blanks(self, ranks: Mapping[str, int]) -> list[str]:
        """The weights without a rank that get one all the same, of zeros, since a layer in them has a bias."""
        profile = profile_of(self.to, self.dialect).of(self.architecture.family)
        biased = {item.module for item in self.passthrough if item.param.endswith(".bias")}
        weights = [job.weight for job in self.jobs if profile.complete_biases and not ranks.get(job.weight.name)]
        return [weight.name for weight in weights if biased & weight.places.keys()]

    def cost(self, job: WeightJob) -> int:
        """Bytes of one rank of a weight."""
        stored = name_of(self.dtype)
        assert stored is not None
        return FORMATS[stored].item_bytes * sum(job.shape)


def passes(amount: Amount) -> int:
    """How often all weights are gone through."""
    return 1 if amount.rank is not None else 2
