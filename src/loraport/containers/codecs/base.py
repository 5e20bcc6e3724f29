"""What a codec is: it claims tensors of a file, with what belongs to them. The numbers are made in `decoding/`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loraport.containers.stored import Group, TensorRef

ModuleSettings = Mapping[str, Mapping[str, Any]]
"""What a file says of the storage of single modules, by module path (`settings.py`)."""


@dataclass(frozen=True)
class Claim:
    """What a codec takes out of a group of stored tensors.

    Args:
        weights: logical tensors by key, as everything above the containers sees them: shape of the decoded tensor,
            codec and companions set.
        used: stored keys that are part of them, or of no further use; nobody sees these any more.
    """

    weights: dict[str, TensorRef] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)


class Codec:
    """How one way of storing weights is recognised, by headers; `decoding.decode` has the numbers."""

    name: str
    """As `TensorRef.codec` has it, and as people read it."""

    def claim(self, group: Group, settings: ModuleSettings) -> Claim:
        """Take what this codec reads, by headers; an empty claim where there is nothing of its kind, and of a codec
        whose tensors are companions only.

        Args:
            group: stored tensors that no codec before this one has claimed.
            settings: what the file says of single modules, by module path (`codecs/settings.py`).
        """
        return Claim()

    def rounding_floor(self, ref: TensorRef) -> float:
        """Relative Frobenius distance of two equal weights that were stored so from different neighbours; 0 where it is
        not known."""
        return 0.0

    def refusal(self, ref: TensorRef) -> str | None:
        """Why a tensor that this codec claims cannot be read as a weight; None where it can. What does not fit is
        better claimed under another name."""
        return None


def logical(
    ref: TensorRef, codec: str, companions: Mapping[str, TensorRef], shape: tuple[int, ...] | None = None
) -> TensorRef:
    """A stored tensor as its codec and companions make it; of another shape where several numbers share bytes."""
    made = replace(ref, codec=codec, companions=tuple(companions.items()))
    return made if shape is None else replace(made, shape=shape, stored_shape=ref.shape)
