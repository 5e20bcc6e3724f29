"""Weights in the block formats of GGUF: a few numbers of a row share a scale, and are read by the `gguf` package."""

from functools import cache
from importlib.util import find_spec
from math import sqrt

from loraport.containers.codecs.base import Claim, Codec, ModuleSettings, logical
from loraport.containers.dtypes import FORMATS
from loraport.containers.stored import Group, TensorRef

# Relative rounding error of Gaussian weights, measured with ggml's own encoder (all importances equal).
ERRORS = {
    "Q8_0": 0.0054,
    "Q6_K": 0.0178,
    "Q5_K": 0.0362,
    "Q5_1": 0.0379,
    "Q5_0": 0.0428,
    "Q4_K": 0.0715,
    "IQ4_NL": 0.0762,
    "IQ4_XS": 0.0768,
    "Q4_1": 0.0783,
    "Q4_0": 0.0861,
    "NVFP4": 0.101,
    "MXFP4": 0.119,
    "IQ3_S": 0.138,
    "Q3_K": 0.151,
    "IQ3_XXS": 0.182,
    "IQ2_S": 0.248,
    "IQ2_XS": 0.296,
    "Q2_K": 0.297,
    "IQ2_XXS": 0.339,
    "IQ1_M": 0.46,
    "IQ1_S": 0.493,
}


class GgufBlocks(Codec):
    """Everything in a GGUF file that is no plain number."""

    name = "GGUF"
    folded = "GGUF, folded"
    """Of a weight that was stored as a matrix of other rows."""

    def __init__(self, name: str = name):
        self.name = name

    def claim(self, group: Group, settings: ModuleSettings) -> Claim:
        """Every quantised tensor; of those that are not read the format is named."""
        claim = Claim()
        for key, ref in group.items():
            if ref.container != "gguf" or ref.dtype in FORMATS or self.name == self.folded:
                continue
            assert ref.stored_shape is not None
            codec = self.name if ref.stored_shape[:-1] == ref.shape[:-1] else self.folded
            claim.weights[key] = logical(ref, codec if ref.dtype in ERRORS else f"GGUF {ref.dtype}", {})
            claim.used.add(key)
        return claim

    def rounding_floor(self, ref: TensorRef) -> float:
        """Measured on Gaussian weights."""
        return sqrt(2.0) * ERRORS[ref.dtype]

    def refusal(self, ref: TensorRef) -> str | None:
        """The package is missing; or rows of a weight whose rows the file does not have."""
        if self.name == self.folded and ref.rows is not None:
            return "part of the rows of a GGUF tensor that was stored in another shape"
        if find_spec("gguf") is None:
            return f"GGUF {ref.dtype} needs the package gguf, which is not installed (pip install 'loraport[gguf]')"
        return None if _known(ref.dtype) else f"GGUF {ref.dtype} needs a newer package gguf (pip install -U gguf)"


@cache
def _known(form: str) -> bool:
    """Whether the package that is installed has a format; some came late."""
    from gguf import GGMLQuantizationType

    return form in GGMLQuantizationType.__members__
