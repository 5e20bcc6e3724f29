"""What the public functions of Python are given: looked at before it fails somewhere inside."""

import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from loraport.errors import UsageError


def as_paths(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """One path or several, as a list of texts."""
    return [os.fspath(each) for each in ([given] if isinstance(given, str | os.PathLike) else given)]


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], *, besides: Collection[str] = ()) -> None:
    """Refuse a value that the annotations of a public function do not allow, before it fails somewhere inside.

    Args:
        function: which is called.
        given: its arguments by name, such as `locals()` in its first line.
        besides: those that are checked elsewhere, such as the fields of a recipe.

    Raises:
        UsageError: names the argument, and the types that it may have.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        value = given[name]
        if name not in besides and not _fits(value, parameter.annotation):
            known = re.sub(r"\w+\.|Callable(?=\[)\[.*\]", "", inspect.formatannotation(parameter.annotation))
            raise UsageError(
                f"{function.__name__}() does not take this as {name}",
                values=f"{shown(value)} ({type(value).__name__})",
                fix=f"give {known or 'a function'}",
            )


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of an annotation."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin in (Sequence, Iterable):
        known = value if isinstance(value, Sequence) else ()
        return isinstance(value, origin) and not isinstance(value, str) and all(_fits(each, inner[0]) for each in known)
    if isinstance(value, bool) and kind is not object:  # Python's truth values are numbers
        return kind is bool
    wider: dict[Any, Any] = {int: Integral, float: (float, int), Path: os.PathLike}
    return isinstance(value, wider.get(kind, origin or kind))


def shown(value: Any) -> str:
    """A value in a message, of bounded length."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
