"""How much is kept: a rank, a share of the energy of each weight, or what fits into a file."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from loraport.engine.recipe import OUTPUT
from loraport.errors import UsageError
from loraport.settings import Setting, Settings, parse_size


class Amount(Settings):
    """One of three. Raises UsageError where it is none or several."""

    rank: Annotated[
        int | None,
        Field(ge=1, le=1_000_000),
        Setting("Same rank for all weights, such as 32.", "--rank", "-r", panel=OUTPUT, metavar="N"),
    ] = None
    energy: Annotated[
        float | None,
        Field(gt=0.0, le=1.0),
        Setting(
            "Smallest rank for each weight that keeps this share of its squared norm, such as 0.95.",
            "--energy", panel=OUTPUT, metavar="X",
        ),
    ] = None  # fmt: skip
    max_size: Annotated[
        Annotated[int, Field(gt=0)] | None,
        BeforeValidator(lambda given: parse_size(given, name="--max-size") if isinstance(given, str) else given),
        Setting(
            "Ranks from one budget: the most energy over all weights in a file no larger than this, such as 300MB.",
            "--max-size", panel=OUTPUT, metavar="SIZE",
        ),
    ] = None  # fmt: skip

    def check(self) -> None:
        """Exactly one of them is given. Raises UsageError."""
        given = [name for name, value in self.values().items() if value is not None]
        if len(given) != 1:
            raise UsageError(
                "exactly one of rank, energy and max_size is needed",
                values=" and ".join(given) or "none",
                fix="give, for example, --rank 32, --energy 0.95 or --max-size 300MB",
            )

    def __str__(self) -> str:
        name, value = next((name, value) for name, value in self.values().items() if value is not None)
        return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
