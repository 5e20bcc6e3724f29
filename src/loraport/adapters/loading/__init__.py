"""The updates that adapters stand for, one file a kind: what those of `kinds/` claim by headers. torch is here.

Who imports this inside a function takes it from the package: a thread then waits until another one has loaded every
kind, and does not find a module of it that is there before the others are.
"""

import importlib
import pkgutil

from loraport.adapters.loading.base import change, load, stored

__all__ = ["change", "load", "load_change", "load_update", "stored"]

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

from loraport.adapters.loading.layers import load_update  # noqa: E402  # it takes the functions above from here
from loraport.adapters.loading.passed_on import load_change  # noqa: E402
