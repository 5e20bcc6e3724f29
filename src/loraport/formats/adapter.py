"""LoRA files in and out: the one place to import from.

Reading is `parse` (which key is what) and `assemble` (layers with their scale); what comes out is
described in `update`; writing is `render`.
"""

from loraport.formats.parse import open_adapter
from loraport.formats.render import render_adapter, write_adapter
from loraport.formats.update import Carried, LayerUpdate, LoraAdapter

__all__ = ["Carried", "LayerUpdate", "LoraAdapter", "open_adapter", "render_adapter", "write_adapter"]
