"""Commands that are loaded when they are called: nobody waits for what the others are made of."""

from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from loraport.cli.plain_help import Command


class Later(TyperCommand):
    """Stands for the command, or the group of commands, in the file of its name until it is called."""

    def make_context(  # type: ignore[override]  # what else a context takes is not given here
        self, info_name: str | None, args: list[str], parent: Any = None, resilient_parsing: bool = False
    ) -> Any:
        """The context of the command itself, with the words that are meant for it.

        Args:
            info_name: how it was called.
            args: the words.
            parent: the context of the program.
            resilient_parsing: words may be missing yet: the shell asks what could come next.
        """
        assert self.name is not None
        command = loaded(self.name)
        return command.make_context(info_name, args, parent=parent, resilient_parsing=resilient_parsing)


@cache
def loaded(name: str) -> Any:
    """The command of a name, made from its file: from the group `app` in it, or the function of that name."""
    module = import_module(f"loraport.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(name, cls=Command, epilog=module.EXAMPLE)(getattr(module, name))
    return typer.main.get_command(app)
