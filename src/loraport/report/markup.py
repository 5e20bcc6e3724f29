"""HTML by construction: text is escaped unless it was made by `element` or marked as safe."""

import html
from collections.abc import Mapping

_VOID = {"br", "hr", "img", "input", "meta", "link", "col"}


class Safe(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, str | float | int | None] | None = None, *children: str) -> Safe:
    """One element; children are escaped unless `Safe`, attributes always are, and None leaves one out."""
    pairs = "".join(
        f' {key}="{html.escape(str(value), quote=True)}"'
        for key, value in (attributes or {}).items()
        if value is not None
    )
    if name in _VOID:
        return Safe(f"<{name}{pairs}>")
    return Safe(f"<{name}{pairs}>{join(*children)}</{name}>")


def join(*children: str) -> Safe:
    """Children one after the other, escaped unless `Safe`."""
    return Safe("".join(child if isinstance(child, Safe) else html.escape(child, quote=False) for child in children))
