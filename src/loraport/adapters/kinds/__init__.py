"""Kinds of adapters, one file each. Every module of this folder is loaded; each names its kind itself."""

import importlib
import pkgutil

from loraport.adapters.kinds.base import KINDS as KINDS

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
