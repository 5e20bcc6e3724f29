"""What the figures of a layer are called, and what they say. Light: pictures and tables need no tensors."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["text", "count", "share", "number"]


@dataclass(frozen=True)
class Column:
    """One figure of a layer, as the table of `-v`, the report and `loraport methods` show it.

    Args:
        key: its name in `LayerReport.stats`, the run log and the JSON.
        title: the head of its column, a word or two.
        help: what it says, in a sentence.
        unit: "share" is of one and printed in per cent, "count" a whole number, "number" has no unit.
    """

    key: str
    title: str
    help: str
    unit: Unit = "number"


COSINE = Column("cosine", "cosine", "cosine between the new update and the input's, before it is cut to a rank")
NORM_RATIO = Column(
    "norm_ratio", "norm ratio", "norm of the new update over that of the input's, before it is cut to a rank"
)
DRIFT_UNDONE = Column(
    "drift_undone",
    "drift undone",
    "share of the drift's squared norm that is removed, before the update is cut to a rank",
    "share",
)
