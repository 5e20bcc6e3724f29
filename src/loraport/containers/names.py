"""Names that stand for files: what ships with the package is called `zoo:NAME`."""

from pathlib import Path

from loraport.zoo import catalogue

ZOO = "zoo:"


def named_path(spec: str | Path) -> Path:
    """The path that a user's words for a model or a LoRA mean; anything but `zoo:NAME` is a path already.

    Raises:
        UsageError: nothing of that name ships; the message names what does.
    """
    text = str(spec)
    return catalogue.path(text.removeprefix(ZOO)) if text.startswith(ZOO) else Path(spec)
