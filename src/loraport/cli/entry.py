"""Functions as commands: what every command can be told about talking, and the parameters of its own.

    @entry
    def inspect(console: Console, files: ...) -> None: ...

Commands with a flag for every field of some settings are made in `loraport.cli.flags`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from loraport.cli import options
from loraport.cli.console import Console


def entry(
    function: Callable[..., None],
    flags: Sequence[inspect.Parameter] = (),
    given: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Turn `function(console, ...)` into a command for typer to read.

    Args:
        function: takes what `given` makes, if anything does, then the console, then the parameters of its own.
        flags: further parameters.
        given: makes one value of theirs, by name.
    """
    own = list(inspect.signature(function).parameters.values())[1 if given is None else 2 :]
    talk = list(inspect.signature(options.talk).parameters.values())

    def call(said: dict[str, Any]) -> None:
        console = Console(*(said.pop(each.name) for each in talk))
        mine = {each.name: said.pop(each.name) for each in own}
        first = (console,) if given is None else (given(said), console)
        function(*first, **mine)

    made: Any = lambda **said: call(said)  # noqa: E731 - typer gives everything by name
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*flags, *own, *talk)]
    made.__signature__ = inspect.Signature(parameters)
    made.__name__, made.__module__, made.__doc__ = function.__name__, function.__module__, function.__doc__
    return made
