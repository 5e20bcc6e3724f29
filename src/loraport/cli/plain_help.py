"""The help of every command, in the same words everywhere."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class PlainHelp:
    """Shows `--help` as the other switches are shown: without a value, for it takes none."""

    def get_help_option(self, ctx: Any) -> Any:
        """The option, as typer makes it."""
        option = super().get_help_option(ctx)  # type: ignore[misc]  # of the command that this is mixed into
        if option is not None:
            option.metavar = ""
        return option


class Command(PlainHelp, TyperCommand):
    """A command."""


class Group(PlainHelp, TyperGroup):
    """A group of commands."""
