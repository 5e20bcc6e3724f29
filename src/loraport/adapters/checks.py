"""What is found out about a LoRA file, a fact a line."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what it was.
        passed: True where it holds, False where the file is at fault. None for a remark: worth knowing, but neither
            promised by the file's header nor wrong in a file that somebody else wrote.
        found: what was found.
    """

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class Verification:
    """What was found out about a file.

    Attributes:
        path: the file.
        checks: everything that was looked at, in order.
    """

    path: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; there may be remarks."""
        return all(check.passed is not False for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        checks = [{"name": check.name, "ok": check.passed, "found": check.found} for check in self.checks]
        return {"path": self.path, "ok": self.ok, "checks": checks}
