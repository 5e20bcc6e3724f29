"""A weight that takes the place of the model's own (ComfyUI's .set_weight): its update is the difference of the two."""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from loraport.adapters.kinds.base import Claim, OnSource, Piece, register
from loraport.errors import MismatchError


@register
class SetWeight(OnSource):
    """One tensor of the weight's shape, whatever has that weight: a layer, a norm, a parameter. It has no alpha."""

    name = "set_weight"
    title = "a replaced weight"
    essential = ("set_weight",)
    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {"set_weight": (".set_weight",)}
    rowwise = ("set_weight",)

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """The weight. See `AdapterKind.claim`."""
        if "set_weight" not in parts:
            return None
        ref = parts["set_weight"].ref
        if prod(ref.shape) == 0 or not ref.shape:
            raise MismatchError(f"{ref.key} is not a weight", where=str(ref.file), values=str(list(ref.shape)))
        shape = (ref.shape[0], prod(ref.shape[1:]))
        why, kernel = "a whole weight, without a scale", None if len(ref.shape) == 2 else tuple(ref.shape)
        return Claim({"set_weight": ref}, shape, None, None, self.essential, why, fixed=True, kernel=kernel)
