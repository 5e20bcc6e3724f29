"""What the name of a model gives away about how it was distilled."""

import re
from functools import cache
from pathlib import PurePosixPath

from loraport.checking.results import Kind
from loraport.checking.thresholds import section


def kind_by_name(*names: str) -> Kind | None:
    """The kind of distillation that a name tells of; None where none does.

    Args:
        names: paths, hub ids, or zoo:NAME; folders further up say nothing of the model.
    """
    ends = ["/".join(PurePosixPath(name.replace("\\", "/")).parts[-2:]) for name in names]
    for pattern, kind, remark in _rules():
        for end in ends:
            if found := pattern.search(end):
                return Kind(kind, f"{end} says {found[0]!r}: {remark}", "names")
    return None


@cache
def _rules() -> tuple[tuple[re.Pattern[str], str, str], ...]:
    rows = section("names")
    return tuple((re.compile(row["pattern"], re.IGNORECASE), row["kind"], row["remark"]) for row in rows)
