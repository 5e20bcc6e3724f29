"""Ways to work on many layers: a file each, named as `--executor` names it.

A file here holds a class `LayerExecutor` made from `Limits`; see docs/adding-an-executor.md.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraport.engine.executor import Executor, Limits

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""What `RunOptions.executor` may be. Listing imports none of them."""


def make_executor(name: str, limits: "Limits") -> "Executor":
    """The executor called `name`, one of `NAMES`. Raises UsageError where it cannot be used."""
    return importlib.import_module(f"{__name__}.{name}").LayerExecutor(limits)
