"""Weights of a judge: in an installed package, or in a file, safetensors or a torch file by restricted loading only."""

import importlib.util
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loraport.errors import FileError
from loraport.metrics.given import check_file, installed

NESTS = ("model_state_dict", "state_dict", "model", "teacher", "params")
"""Names under which checkpoints keep the weights of interest."""
NUMBERS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
"""What a number of NumPy is made by, which torch leaves out in restricted loading."""
BROKEN = (RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError, struct.error)
"""What the reader of torch files says of bytes that are none."""


def package_folder(package: str, files: Iterable[str], *programs: str) -> Path | None:
    """Where an installed package keeps such files; None where it is not installed or has not all of them.

    Args:
        package: its module.
        files: names in its folder.
        programs: modules that run them; None where one is not there either.
    """
    found = importlib.util.find_spec(package) if installed(*programs) else None
    places = (found.submodule_search_locations or []) if found is not None else []
    return next((Path(place) for place in places if all(Path(place, each).is_file() for each in files)), None)


def read_state(file: Path, *, keep_dtype: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name, without the `module.` that training on several GPUs leaves.

    Args:
        file: safetensors or a torch file.
        keep_dtype: leave numbers as they are stored, or else in float32.

    Raises:
        FileError: no such file, a damaged one, or one that holds more than tensors and plain values.
    """
    check_file(file)
    try:
        held: Any = load_file(file) if file.suffix == ".safetensors" else _restricted(file)
    except (SafetensorError, OSError, pickle.UnpicklingError, *BROKEN) as error:
        raise FileError(
            "the weights cannot be read", where=str(file), values=_reason(error),
            fix="give safetensors, or a torch file that holds only tensors",
        ) from error  # fmt: skip
    nest = next((name for name in NESTS if isinstance(held, Mapping) and isinstance(held.get(name), Mapping)), None)
    inner = held[nest] if nest is not None else held
    if not isinstance(inner, Mapping) or not any(isinstance(value, Tensor) for value in inner.values()):
        raise FileError(
            "there are no weights by name in this file", where=str(file), fix="give the file of a network's weights"
        )
    return {
        str(key).removeprefix("module."): value if keep_dtype or not value.is_floating_point() else value.float()
        for key, value in inner.items()
        if isinstance(value, Tensor)
    }


def require_shapes(
    state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], *, file: Path, network: str, fix: str
) -> None:
    """Refuse weights that are not of a network: one is missing, or has another shape; others may be beside them.

    Args:
        state: the weights by name.
        wanted: shapes by name.
        file: where they are from.
        network: whose they should be.
        fix: which file is meant.

    Raises:
        FileError: they are not.
    """
    wrong = [key for key, shape in wanted.items() if key not in state or tuple(state[key].shape) != shape]
    if wrong:
        raise FileError(
            f"these are not the weights of {network}", where=str(file), fix=fix,
            values=f"{len(wrong)} of {len(wanted)}, e.g. {wrong[0]}, missing or of another shape",
        )  # fmt: skip


def _reason(error: Exception) -> str:
    """What torch says in its first line; of objects beside tensors, which was met first, which it says further down."""
    if isinstance(error, LookupError):  # only a number or a letter, from inside the reader
        return "it is not a torch file, or a damaged one"
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"it holds more than tensors: {named[1]}; nothing of it was run"
    return (str(error).strip().splitlines() or [""])[0][:200]


def _restricted(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(name in str(error) for name in NUMBERS):
            raise
    with torch.serialization.safe_globals([(_Number, name) for name in NUMBERS]):
        return torch.load(file, map_location="cpu", weights_only=True)


class _Number:
    """Stands where a file has a number of NumPy beside its weights, a rate of learning say; nobody reads it."""

    def __new__(cls, *_: object) -> "_Number":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass
