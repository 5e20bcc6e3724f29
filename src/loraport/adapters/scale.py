"""The scale of an update: where it may come from, alpha / rank as a number within bounds, and alpha tensors."""

import math

from loraport.containers import references
from loraport.containers.references import TensorRef
from loraport.errors import FileError, NumericalError, UsageError

SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30  # float32 is coarse below 1e-38 and ends at 3e38
# Where a scale comes from, for people.
FROM_METADATA = "lora_adapter_metadata in the header"
FROM_HEADER = "alpha in the header"
FROM_CONFIG = "adapter_config.json beside the file"
BY_HAND = "stated by hand"
ASSUMED = "no alpha anywhere"
STATE_IT = "give alpha / rank with --scale (of transfer, check and convert)"


def scale_of(alpha: float, rank: int | float, *, rslora: bool = False, where: str) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA; an alpha of 0 means the rank.

    Raises:
        NumericalError: a negative, infinite or NaN alpha.
    """
    if not math.isfinite(alpha) or alpha < 0:
        raise NumericalError(
            "alpha must be a finite number that is not negative", where=where, values=f"alpha = {alpha}", fix=STATE_IT
        )
    if alpha == 0:
        return 1.0
    scale = alpha / math.sqrt(rank) if rslora else alpha / rank
    if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        raise NumericalError(
            "the scale is far too large or too small",
            where=where,
            values=f"alpha = {alpha:g}, rank {rank:g}",
            fix=STATE_IT,
        )
    return scale


def check_factor(factor: float, what: str) -> float:
    """A scale or strength given by hand. Raises UsageError unless it is a number above zero within all measure."""
    if not math.isfinite(factor) or factor <= 0:
        raise UsageError(
            f"the {what} must be a finite number above zero", values=f"{factor}", fix=f"give one, such as {what} 0.8"
        )
    if not SMALLEST_SCALE <= factor <= LARGEST_SCALE:
        raise UsageError(
            f"the {what} is far too large or too small",
            values=f"{factor:g}",
            fix=f"give one from {SMALLEST_SCALE:g} to {LARGEST_SCALE:g}",
        )
    return float(factor)


def read_alpha(ref: TensorRef) -> float:
    """The one number of an alpha tensor, of any dtype, 0-dim or one entry. Raises FileError otherwise."""
    if math.prod(ref.shape) != 1:
        raise FileError(
            "an alpha must be a single number", where=ref.name, values=f"shape {list(ref.shape)}", fix=STATE_IT
        )
    number = references.read_number(ref)
    if isinstance(number, bool):
        raise FileError("an alpha must be a number", where=ref.name, values=str(number), fix=STATE_IT)
    return float(number)


def read_number(ref: TensorRef) -> float:
    """As `read_alpha`. Raises NumericalError for NaN or infinity as well."""
    number = read_alpha(ref)
    if not math.isfinite(number):
        raise NumericalError(f"{ref.key} holds NaN or infinity", where=str(ref.file))
    return number
