"""What this process may take of its machine: cores and memory, also where a container allows less than there is.

Docker, Kubernetes and rented machines limit a container by the control groups of Linux, which neither `os` nor psutil
asks. A program that counts the machine's cores and memory there is slowed down, or killed without a word.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_OWN, _MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """CPU cores that this process may use; a part of one counts as one."""
    return max(math.ceil(min([cores_in_sight(), *map(_cores_of, _groups("cpu"))])), 1)


def cores_in_sight() -> int:
    """CPU cores that this process may run on, which is what libraries count, whatever share of them it is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that this process could take now. Files that the system keeps in memory give way."""
    import psutil

    return int(max(min([psutil.virtual_memory().available, *map(_bytes_of, _groups("memory"))]), 0))


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of all above it, as the first or the second version has them.

    In a container the group may be named as the machine sees it, which is not there; the folder above all is.
    """
    for line in _text(_OWN).splitlines():
        _, _, told = line.partition(":")
        controllers, _, name = told.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        inside = PurePosixPath(name.lstrip("/"))
        for group in (inside, *inside.parents):
            yield _MOUNTED / (controller if controllers else "") / group


def _cores_of(group: Path) -> float:
    """That a group allows; infinite where it says nothing."""
    told = _text(group / "cpu.max").partition(" ")[::2]
    if not told[0]:
        told = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    quota, period = map(_number, told)
    return quota / period if 0 < quota < math.inf and 0 < period < math.inf else math.inf


def _bytes_of(group: Path) -> float:
    """That a group still has; infinite where it sets no limit."""
    limit, used = (
        min(_number(_text(group / second)), _number(_text(group / first)))
        for second, first in (("memory.max", "memory.limit_in_bytes"), ("memory.current", "memory.usage_in_bytes"))
    )
    if limit == math.inf or used == math.inf:
        return math.inf
    kept = dict(line.rpartition(" ")[::2] for line in _text(group / "memory.stat").splitlines())
    # The first version counts the groups below as well only in what is called a total.
    files = [_number(kept.get(f"total_{each}", kept.get(each, "0"))) for each in ("active_file", "inactive_file")]
    return limit - used + sum(files)


def _number(text: str) -> float:
    """Infinite for "max" and whatever else is no number."""
    return int(text) if text.strip().lstrip("-").isdecimal() else math.inf


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")  # a group's name may be any bytes
    except OSError:
        return ""
