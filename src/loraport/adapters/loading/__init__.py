"""The updates that adapters stand for, one file a kind: what those of `kinds/` claim by headers. torch is here."""

import importlib
import pkgutil

from loraport.adapters.loading.base import change, load, stored

__all__ = ["change", "load", "stored"]

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
