"""Where a layer stands in its model, by its name."""

import re

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


def kind_and_block(name: str) -> tuple[str, int | None]:
    """The kind of a layer, its name without the block, and the block's number: "self_attn.q" and 7."""
    found = _NUMBER.search(name)
    if found is None:
        return name, None
    before = name[: found.start()]
    stem = "" if before in ("", "blocks") else f"{before}."
    return stem + name[found.end() :], int(found[1])


def by_depth(name: str) -> tuple[str, int]:
    """A key that sorts layers by block: files may have them in the order of the alphabet, block 10 before block 2."""
    found = _NUMBER.search(name)
    return (name, -1) if found is None else (name[: found.start()], int(found[1]))
