"""Shapes checked by jaxtyping and beartype, once for each kind of call: that of every call made half of a transfer.

Whether a call is right by its annotations depends on types, number formats, shapes and plain values, not on what
tensors hold. So a function that is called ten thousand times alike is checked once, and again when anything differs.
"""

import functools
import threading
import types
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import is_dataclass
from typing import Any

import jaxtyping
from jaxtyping import install_import_hook

_checked = jaxtyping.jaxtyped
_MOST_KINDS = 10_000  # of calls of one function that are remembered
_UNLIKE = object()  # what may differ inside without showing it
_PLAIN = (str, bool, int, type, types.NoneType)  # annotations may ask for a value, and axes be named by a number


def install(modules: list[str]) -> AbstractContextManager[None]:
    """Have the functions and dataclasses of these modules checked, which are not imported yet."""
    jaxtyping.jaxtyped = checked_once
    return install_import_hook(modules, "beartype.beartype")


def checked_once(*, typechecker: Callable) -> Callable:
    """In the place of `jaxtyping.jaxtyped`, which the import hook puts on every function and class."""
    return functools.partial(_decorated, typechecker=typechecker)


def _decorated(decorated: Any, typechecker: Callable) -> Any:
    if not isinstance(decorated, type):
        return _once(decorated, typechecker)
    if is_dataclass(decorated) and not hasattr(decorated.__init__, "checked_once"):
        decorated.__init__ = _once(decorated.__init__, typechecker)
    return decorated


def _once(function: Callable, typechecker: Callable) -> Callable:
    passed: dict[tuple, set] = {}
    result = threading.local()

    def given_back(*args, **kwargs):
        return result.value

    @functools.cache
    def whole() -> Callable:
        """The function with checks. Made when it is needed, since most are called in few of the processes."""
        return _checked(function, typechecker=typechecker)

    @functools.cache
    def result_alone() -> Callable:
        """The same checks of what was given back already."""
        echo = types.FunctionType(given_back.__code__, function.__globals__, closure=given_back.__closure__)
        return _checked(functools.wraps(function)(echo), typechecker=typechecker)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        __tracebackhide__ = True
        given = (*map(_kind, args), *kwargs, *map(_kind, kwargs.values())) if kwargs else tuple(map(_kind, args))
        if _UNLIKE in given or len(passed) > _MOST_KINDS:
            return whole()(*args, **kwargs)
        known = passed.get(given)
        if known is None:
            out = whole()(*args, **kwargs)
            known = passed.setdefault(given, set())
        else:
            out = function(*args, **kwargs)
            if _kind(out) in known:
                return out
            result.value = out
            try:
                result_alone()(*args, **kwargs)
            finally:
                del result.value
        if _kind(out) is not _UNLIKE:
            known.add(_kind(out))
        return out

    checked.checked_once = True
    return checked


def _kind(value: Any) -> object:
    """What the checks of a value depend on, hashable; `_UNLIKE` where more would have to be looked at."""
    return _kind_of(type(value))(value)


@functools.cache
def _kind_of(way: type) -> Callable[[Any], object]:
    from torch import Tensor  # not above: the process that hands out the tests needs none

    if issubclass(way, Tensor):
        return lambda value: (way, value.dtype, value.shape)
    if way in _PLAIN:
        return lambda value: (way, value)
    if way is tuple:
        return _kinds_inside
    if issubclass(way, Collection) and not issubclass(way, bytes):  # lists, mappings, arrays
        return lambda value: _UNLIKE
    return lambda value: way


def _kinds_inside(values: tuple) -> object:
    kinds = tuple(map(_kind, values[:5]))
    return _UNLIKE if _UNLIKE in kinds or len(kinds) == 5 else kinds
