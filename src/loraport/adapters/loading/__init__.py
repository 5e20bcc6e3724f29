"""The updates that adapters stand for, one file a kind: what those of `kinds/` claim by headers. torch is here."""

from loraport.adapters.loading import diff, dora, glora, ia3, loha, lokr, lora, oft, set_weight, split, vera
from loraport.adapters.loading.base import change, load, stored

__all__ = [
    "change",
    "diff",
    "dora",
    "glora",
    "ia3",
    "load",
    "loha",
    "lokr",
    "lora",
    "oft",
    "set_weight",
    "split",
    "stored",
    "vera",
]
