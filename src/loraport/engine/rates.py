"""How fast this machine is, by the kinds of work that a transfer consists of. Measured once, in about a second.

Computing is measured by the time of the processor, on one thread, so that another program that is busy meanwhile does
not slow the estimate down; on an accelerator by the clock. The rates stay in the cache folder under the name of the
processor, its cores and torch's version, and are measured again when none of that is there.
"""

import contextlib
import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from loraport.errors import FileError
from loraport.files import write_bytes
from loraport.machine import cores

_VERSION = 2


@dataclass(frozen=True)
class Rates:
    """What one layer in flight gets done in a second.

    Args:
        products: floating-point operations of float32 matrix products.
        decompositions: those of a symmetric eigenproblem, counted as 9 n^3, beside what each column takes.
        passes: bytes read or written element by element.
        read: bytes of stored weights, from the system's memory of the file: read, hashed, and turned into float32.
        keep: bytes written into the cache.
        fetch: bytes read back from it and checked.
        column: seconds (and no rate) for each column of an eigenproblem, on an accelerator.
    """

    products: float
    decompositions: float
    passes: float
    read: float
    keep: float
    fetch: float
    column: float = 0.0


def rates_of(device: str, root: Path | None) -> Rates:
    """The rates of a device of this machine.

    Args:
        device: torch name. For one that only another machine of a cluster has, the processor of this one stands in.
        root: the cache folder, where they are looked up and left; None to measure and forget.
    """
    if device.startswith("cuda"):
        from loraport.engine import accelerators

        device = device if accelerators.card_names() else "cpu"
    path = None if root is None else root / "machine" / f"{_fingerprint(device)}.json"
    if path is not None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Rates(**json.loads(path.read_bytes()))
    from loraport.engine.measuring import measure  # brings torch along

    try:
        found = measure(device, root)
    except RuntimeError:  # the device has no room or does not work, which whoever computes there will say
        if device == "cpu":
            raise
        return rates_of("cpu", root)
    if path is not None:
        with contextlib.suppress(OSError, FileError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, json.dumps(asdict(found)).encode())
    return found


def processor_name() -> str:
    """What the processor of this machine is called."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return name


def _fingerprint(device: str) -> str:
    name = processor_name()
    if device.startswith("cuda"):
        from loraport.engine import accelerators

        name += accelerators.name_of(device)
    facts = [_VERSION, name, cores(), version("torch"), device.partition(":")[0]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
