"""A torch file in which some tensors are stored in another way, or are left out.

What describes the tensors is a pickle, and is made anew by torch itself. The new numbers are in a file of their own,
one behind the other; all tensors, old and new, are mapped, and torch writes them one by one.
"""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraport.containers.arrange import Places, Put
from loraport.containers.dtypes import FORMATS
from loraport.containers.stored import TensorRef
from loraport.containers.torch_zip import load_mapped, name_of_entry

_APART = 64  # bytes between the places of numbers, a multiple of every number's size


def places_of(puts: Iterable[Put]) -> Places:
    """Where the new numbers of each tensor are in a file of their own."""
    places, begin = {}, 0
    for put in puts:
        places[put.name] = begin, begin + put.nbytes
        begin += -(-put.nbytes // _APART) * _APART
    return places


def write_anew(source: Path, target: Path, numbers: Path, puts: Sequence[Put], dropped: Sequence[TensorRef]) -> None:
    """Write the file with the new numbers.

    Args:
        source: the original.
        target: the name of the new file.
        numbers: the file with the new numbers, at `places_of(puts)`.
        puts: the tensors that get other numbers.
        dropped: the tensors that are left out.

    Raises:
        FileError: the original cannot be read.
        OSError: the new file cannot be written.
    """
    places = places_of(puts)
    size = max((end for _, end in places.values()), default=0)
    storage = torch.UntypedStorage.from_file(os.fspath(numbers), False, size) if size else torch.UntypedStorage(0)
    content = load_mapped(str(source))
    by_nest: dict[tuple[str, ...], dict[str, tuple[str, Tensor] | None]] = {}
    for put in puts:
        begin, end = places[put.name]
        tensor = torch.empty(0, dtype=getattr(torch, FORMATS[put.dtype].dtype))
        tensor.set_(storage[begin:end], 0, put.shape)  # type: ignore[call-overload]
        by_nest.setdefault(put.ref.nest, {})[put.ref.key] = put.key, tensor
    for ref in dropped:
        by_nest.setdefault(ref.nest, {})[ref.key] = None
    for nest, changes in by_nest.items():
        content = _with(content, nest, changes)
    try:
        torch.save(content, target)
    except RuntimeError as error:  # torch's writer wraps errors of the system in its own type
        raise OSError(str(error)) from error


def _with(content: Any, nest: tuple[str, ...], changes: Mapping[str, tuple[str, Tensor] | None]) -> Any:
    """A mapping in which some tensors are others; what else holds the same mapping keeps its own."""
    fresh = copy.copy(content)
    items = list(content.items())
    fresh.clear()
    for key, value in items:
        name = name_of_entry(key)
        if nest and name == nest[0] and isinstance(value, Mapping):
            fresh[key] = _with(value, nest[1:], changes)
        elif nest or name not in changes:
            fresh[key] = value
        elif (change := changes[name]) is not None:
            fresh[change[0] if change[0] != name else key] = change[1]
    return fresh
