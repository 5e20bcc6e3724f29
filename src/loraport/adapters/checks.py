"""What is found out about a LoRA file, a fact a line."""

from dataclasses import dataclass


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
