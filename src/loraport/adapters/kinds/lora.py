"""Plain LoRA: two factors, the update is up @ down."""

from collections.abc import Mapping

from torch import Tensor

from loraport.adapters.kinds.base import AdapterKind, Claim, Piece, check_rank, matrix_shape, read_finite, register
from loraport.containers.tensors import TensorRef, read_float
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError


@register
class Lora(AdapterKind):
    """B (m x r, "up") and A (r x n, "down"), either of them also as a convolution with a kernel of size 1."""

    name = "lora"
    title = "LoRA"
    essential = ("down", "up")
    linear = ("up",)
    rowwise = ("B",)

    def claim(self, module: str, parts: Mapping[str, Piece]) -> Claim | str | None:
        """Both factors, fitting each other. See `AdapterKind.claim`."""
        missing = [part for part in self.essential if part not in parts]
        if missing:
            return missing[0] if len(missing) == 1 else None
        down, up = parts["down"], parts["up"]
        a, b = matrix_shape(down.ref), matrix_shape(up.ref)
        if a is None or b is None or a[0] != b[1] or a[0] == 0:
            raise MismatchError(
                f"the two factors of {module} do not fit each other",
                where=str(down.ref.file),
                values=f"{down.key} {list(down.ref.shape)}, {up.key} {list(up.ref.shape)}",
                fix="the file is damaged or not a plain LoRA",
            )
        check_rank(module, a[0], (b[0], a[1]), down)
        return Claim({"A": down.ref, "B": up.ref}, (b[0], a[1]), a[0], a[0], self.essential)

    def load(self, parts: Mapping[str, TensorRef], shape: tuple[int, int]) -> LowRank:
        """B and A as they are. See `AdapterKind.load`."""
        rank = parts["A"].shape[0]
        return LowRank(read_float(parts["B"]).reshape(shape[0], rank), read_float(parts["A"]).reshape(rank, shape[1]))

    def stored(self, parts: Mapping[str, TensorRef], shape: tuple[int, int]) -> tuple[Tensor, Tensor] | Tensor:
        """Both factors bit for bit. See `AdapterKind.stored`."""
        return read_finite(parts["B"]), read_finite(parts["A"])

    def factored(self, shape: tuple[int, int], rank: int) -> bool:
        """Always: that is how it lies in the file."""
        return True

    def size(self, shape: tuple[int, int], rank: int) -> str:
        """The rank."""
        return str(rank)
