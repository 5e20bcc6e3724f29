"""What a merge did, as plain values."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        output: the file or folder written.
        files: all files written.
        tensors: number of tensors that changed.
        untouched: number of tensors that are bit for bit as they were.
        requantized: number of changed tensors that are stored in 8 bits.
        dequantized: number of changed tensors that became plain numbers.
        grown_bytes: number of bytes by which the files became larger.
        lost: Frobenius norm of what rounding to the checkpoint's formats removed or added, over that of the update.
        lost_most: the same for the tensor that lost most.
        lost_in: the name of that tensor.
        left_out: keys of the LoRAs that change nothing in the checkpoint.
        warnings: sentences for the user.
        continued: number of changed tensors that an earlier, stopped run had already written.
        seconds: wall time.
    """

    output: Path
    files: tuple[Path, ...]
    tensors: int
    untouched: int
    requantized: int
    dequantized: int
    grown_bytes: int
    lost: float
    lost_most: float
    lost_in: str
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    continued: int
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "output": str(self.output),
            "files": [str(file) for file in self.files],
            "left_out": list(self.left_out),
            "warnings": list(self.warnings),
        }
