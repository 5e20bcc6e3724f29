"""Which files a LoRA has: one, or for Wan2.2 with its two transformers one for each expert."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport.adapters.opened import in_folder
from loraport.adapters.parse import experts_in, open_adapter
from loraport.comparing.models import Model
from loraport.containers.access import nearest_path
from loraport.containers.names import Expert, expert_named, named_path, renamed_for
from loraport.errors import FileError, UsageError

HALF = {"high": "high-noise", "low": "low-noise"}


@dataclass(frozen=True)
class LoraFiles:
    """The files of one LoRA.

    Attributes:
        high: for the high-noise expert, or for a model with one transformer.
        low: for the low-noise expert; the same file where it holds both, or serves both.
        note: what nobody said and was taken, a sentence; "" where all was said.
    """

    high: Path | None
    low: Path | None = None
    note: str = ""

    @property
    def named(self) -> Path:
        """The file after which the LoRA is called."""
        found = self.high or self.low
        assert found is not None
        return found

    @property
    def by_expert(self) -> dict[Expert, Path]:
        """The files by the expert that they are loaded into."""
        both: dict[Expert, Path | None] = {"high": self.high, "low": self.low}
        return {expert: file for expert, file in both.items() if file is not None}


def lora_file(spec: str | Path) -> Path:
    """The file that a LoRA's name means, or the one in a folder as PEFT and diffusers save it. Raises FileError."""
    path = named_path(spec)
    if path.is_dir():
        return in_folder(path)
    if not path.is_file():
        raise FileError("there is no such LoRA file", where=str(spec), fix=nearest_path(path))
    return path


def part_of(file: Path, expert: Expert, *, two_experts: bool) -> Expert | None:
    """The part of a LoRA that is loaded into a transformer; None where the whole file is.

    Args:
        file: of the LoRA.
        expert: which transformer.
        two_experts: whether the model has two.
    """
    return expert if two_experts and len(experts_in(file)) == 2 else None


def check_lora(file: Path, expert: Expert, model: Model, role: str) -> None:
    """Refuse by headers what would be refused once the model is loaded.

    Args:
        file: of the LoRA.
        expert: which transformer it is for.
        model: the model.
        role: `source` or `target`, for messages.

    Raises:
        LoraportError: as `open_adapter`: not a LoRA, or of another family or size. UnsupportedError: a function of the
            weights it was trained on.
    """
    part, own = part_of(file, expert, two_experts=model.two_experts), model.architecture
    open_adapter(file, expert=part, architecture=own.family.name).check_weights()
    open_adapter(file, own, role=role, expert=part, allow_partial=True)  # by size; other layers a pipeline may allow


def find_files(
    lora: str | Path,
    lora_low: str | Path | None,
    transferred: Sequence[str | Path],
    transferred_low: Sequence[str | Path],
    *,
    two_experts: bool,
) -> tuple[LoraFiles, ...]:
    """The files of the LoRA and of what was made of it.

    Args:
        lora: the LoRA.
        lora_low: that for the low-noise expert.
        transferred: what was made of it.
        transferred_low: the same for the low-noise expert, in the same order; or none.
        two_experts: whether the models have two transformers.

    Raises:
        UsageError: files for a low-noise expert that is not there, or not as many as for the other.
        FileError: one is not there. MismatchError: one is no LoRA.
    """
    if not two_experts:
        extra = [("--lora-low", lora_low)] if lora_low is not None else []
        for flag, given in [*extra, *(("--transferred-low", each) for each in transferred_low)]:
            raise UsageError(
                "the models have one transformer each, but a file is given for a low-noise one",
                values=f"{flag} {given}", fix=f"leave {flag} out",
            )  # fmt: skip
        return tuple(LoraFiles(lora_file(each)) for each in (lora, *transferred))
    if transferred_low and len(transferred_low) != len(transferred):
        raise UsageError(
            "the two experts have different numbers of transferred files",
            values=f"{len(transferred)} by --transferred, {len(transferred_low)} by --transferred-low",
            fix="name them in pairs, in the same order",
        )
    lows: Sequence[str | Path | None] = transferred_low or [None] * len(transferred)
    made = [_files(high, low, "--transferred") for high, low in zip(transferred, lows, strict=True)]
    once = {tuple(one.by_expert.values()): one for one in reversed(made) if one.note}  # of two that bring each other
    return (_files(lora, lora_low, "--lora"), *(one for one in made if not one.note or one in once.values()))


def _files(given: str | Path, low: str | Path | None, flag: str) -> LoraFiles:
    """Both files, or the one that there is with the expert that it is for."""
    file = lora_file(given)
    if low is not None:
        second = lora_file(low)
        if (expert_named(file.name), expert_named(second.name)) == ("low", "high"):
            raise UsageError(
                "each of the two files is named after the expert that the other is given for",
                values=f"{flag} {given}, {flag}-low {low}", fix="swap them",
            )  # fmt: skip
        return LoraFiles(file, second)
    inside = experts_in(file)
    if len(inside) == 2:
        return LoraFiles(file, file, f"{file.name} holds LoRAs for both experts, and each is loaded into its own")
    own: Expert | None = next(iter(inside), None) or expert_named(file.name)
    if own is not None:
        other: Expert = "low" if own == "high" else "high"
        beside = renamed_for(file, other)
        if beside != file and beside.is_file():
            pair = (file, beside) if own == "high" else (beside, file)
            return LoraFiles(*pair, f"{beside.name}, beside {file.name}, is used for the {HALF[other]} expert")
    if own == "low":
        return LoraFiles(None, file, f"{file.name} is for the low-noise expert and is loaded only into that one")
    return LoraFiles(
        file, None,
        f"{file.name} is loaded only into the high-noise expert, as diffusers does; {flag}-low FILE names the one "
        "for the other (name the same file for both)",
    )  # fmt: skip
