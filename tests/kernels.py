"""Which operations of torch have a kernel for a kind of device, by the table from which torch itself is made."""

import re
from functools import cache
from pathlib import Path

import torchgen

_TABLE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
_EVERYWHERE = "Composite"  # done with others, which have one


@cache
def _backends() -> dict[str, frozenset[str]]:
    """By name and overload of an operation the kinds of devices that it has a kernel for."""
    found: dict[str, set[str]] = {}
    delegates: dict[str, str] = {}
    for entry in re.split(r"^- func: ", _TABLE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        name = entry.partition("(")[0].strip()
        part = re.search(r"^  dispatch:\n((?:    .*\n|\s*#.*\n)*)", entry, re.MULTILINE)
        kinds = re.findall(r"^    ([\w, ]+):", part[1], re.MULTILINE) if part else []
        found[name] = {kind.strip() for line in kinds for kind in line.split(",")}
        if "ufunc_inner_loop:" in entry:
            found[name] |= {"CPU", "CUDA"}
        delegate = re.search(r"^  structured_delegate: (\S+)", entry, re.MULTILINE)
        if delegate:
            delegates[name] = delegate[1]
        elif not part and "ufunc_inner_loop:" not in entry:
            found[name] = {_EVERYWHERE}
    for name, other in delegates.items():
        found[name] |= found[other]
    return {name: frozenset(kinds) for name, kinds in found.items()}


def has_kernel(operation: str, kind: str) -> bool:
    """Whether there is one.

    Args:
        operation: as torch spells it, such as `aten.add.Tensor`.
        kind: CUDA or MPS.
    """
    space, name, overload = operation.split(".")
    if space != "aten":
        return False
    kinds = _backends()[name if overload == "default" else f"{name}.{overload}"]
    return kind in kinds or any(each.startswith(_EVERYWHERE) for each in kinds)
