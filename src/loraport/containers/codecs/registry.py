"""All codecs, and the one place that asks them."""

from collections.abc import Mapping

from loraport.containers.codecs.base import Codec
from loraport.containers.codecs.block_scales import Exponents, Mxfp8, SmallFloats
from loraport.containers.codecs.gguf_blocks import GgufBlocks
from loraport.containers.codecs.int8 import GROUPS, Int4Rotated, Int8, Int8Rotated
from loraport.containers.codecs.nvfp4 import PACKINGS, Nvfp4
from loraport.containers.codecs.raw import Raw
from loraport.containers.codecs.refused import Refused
from loraport.containers.codecs.scaled_fp8 import ScaledFp8
from loraport.containers.codecs.scales import BY_SQUARES
from loraport.containers.codecs.settings import module_settings
from loraport.containers.codecs.subclasses import put_together
from loraport.containers.stored import Group, TensorRef

CODECS: tuple[Codec, ...] = (
    Refused("refused"),
    GgufBlocks(),
    GgufBlocks(GgufBlocks.folded),
    Int8(),
    Int8("int8" + BY_SQUARES),
    *map(Int8Rotated, GROUPS),
    *map(Int4Rotated, GROUPS),
    Mxfp8(),
    *map(Nvfp4, PACKINGS),
    Exponents(),
    SmallFloats(),
    ScaledFp8(),
    ScaledFp8("scaled" + BY_SQUARES),
    Raw(),
)
"""Asked in this order: what is recognised and refused first, what takes the rest last. A new codec goes between."""

ENCODED = (Raw, ScaledFp8)
"""Those in which other numbers can be stored: `encoding.py` has a form for each, as a merge knows by headers."""

_BY_NAME = {codec.name: codec for codec in CODECS}


def codec_of(ref: TensorRef) -> Codec:
    """The codec of a tensor. A name that no codec has is that of a scheme which is refused."""
    return _BY_NAME.get(ref.codec) or Refused(ref.codec)


def logical_group(group: Group, metadata: Mapping[str, str]) -> Group:
    """The weights that a group of stored tensors stands for, in the order of the file.

    Args:
        group: stored tensors by key, of all shards of a model.
        metadata: the text of their headers.

    Raises:
        FileError: settings in the file that cannot be read.
    """
    group = put_together(group, metadata)
    settings = module_settings(group, metadata)
    rest, weights = dict(group), {}
    for codec in CODECS:
        claim = codec.claim(rest, settings)
        weights.update(claim.weights)
        if claim.used:
            rest = {key: ref for key, ref in rest.items() if key not in claim.used}
        if not rest:
            break
    ordered = {key: weights[key] for key in group if key in weights}
    return ordered | weights
