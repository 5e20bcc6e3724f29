"""The numbers of stored weights, one file a codec: what those of `codecs/` claim by headers. torch is here."""

from loraport.containers.decoding import block_scales, gguf_blocks, int8, nvfp4, plain, scales
from loraport.containers.decoding.base import decode

__all__ = ["block_scales", "decode", "gguf_blocks", "int8", "nvfp4", "plain", "scales"]
