"""Kinds of adapters, one file each. This list is the only place that knows them all."""

from loraport.adapters.kinds.base import AdapterKind
from loraport.adapters.kinds.diff import Diff
from loraport.adapters.kinds.loha import Loha
from loraport.adapters.kinds.lokr import Lokr
from loraport.adapters.kinds.lora import Lora

KINDS: dict[str, AdapterKind] = {kind.name: kind for kind in (Lora(), Lokr(), Loha(), Diff())}
