"""Numbers that are stored as they are, 8-bit floating point without a scale included."""

from loraport.containers import dtypes
from loraport.containers.codecs.base import Claim, Codec, ModuleSettings
from loraport.containers.stored import Group, TensorRef


class Raw(Codec):
    """Every tensor that nobody else claims."""

    name = "raw"

    def claim(self, group: Group, settings: ModuleSettings) -> Claim:
        """All of it."""
        return Claim(dict(group), set(group))

    def refusal(self, ref: TensorRef) -> str | None:
        """Integers and formats that are not known are no weights."""
        if ref.dtype not in dtypes.FORMATS:
            return f"numbers in a format that is not known ({ref.dtype})"
        return None if dtypes.is_float(ref.dtype) else f"integers ({ref.dtype})"
