"""The help of every command, in the same words everywhere."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class PlainHelp:
    """Shows switches without a value, for they take none; typer would call it `<bool>`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Arguments and options, as typer makes them."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the command that this is mixed into
        for each in params:
            if getattr(each, "is_flag", False) or getattr(each, "count", False):
                each.metavar = ""
        return params


class Command(PlainHelp, TyperCommand):
    """A command."""


class Group(PlainHelp, TyperGroup):
    """A group of commands."""
