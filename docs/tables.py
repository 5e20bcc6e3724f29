"""Writes the tables of consumers.md, and those of families in formats.md, from the package: `python docs/tables.py`."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from loraport.adapters.consumers import ADDED, ALL, OUTCOMES, PARTS, Consumer, consumers, writable
from loraport.adapters.dialect import PROFILE_NAMES, SAME_AS_INPUT
from loraport.models.families import families, recognised
from loraport.models.family import Family

PAGE = Path(__file__).parent / "consumers.md"
BEGIN, END = "<!-- made by docs/tables.py from src/loraport/adapters/consumers.yaml -->", "<!-- end -->"
FORMATS = Path(__file__).parent / "formats.md"
FROM_FAMILIES = "<!-- made by docs/tables.py from src/loraport/models/data -->"
HOW = {"run": "run", "part": "part run, part read", "read": "read"}
CELLS = {"quiet": "no", "warning": "no (log)", "count": "no (count)", "outside": "blocks only", "error": "**refused**"}
CELLS["unknown"] = "?"


def page() -> str:
    """The whole page as it should be."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [_programs()] + [_family(name) for name in _families()]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(tables) + f"\n\n{END}{after}"


def formats_page() -> str:
    """The page of formats as it should be."""
    before, _, rest = FORMATS.read_text("utf-8").partition(FROM_FAMILIES)
    _, _, after = rest.partition(END)
    return f"{before}{FROM_FAMILIES}\n\n{_known()}\n\nOnly recognised: {_recognised()}.\n\n{END}{after}"


def _known() -> str:
    head = ["family", "sizes known by name", "one weight there, several elsewhere", "rows in another order"]
    head += ["`universal` has the names of", "diffusers reads"]
    rows = [
        [
            family.title,
            ", ".join(size["name"] for size in family.sizes),
            _by_naming(family, _fused),
            _by_naming(family, _reordered),
            family.universal,
            _read_by_diffusers(name),
        ]
        for name, family in sorted(families().items(), key=lambda item: item[1].title)
    ]
    return _table(head, rows)


def _recognised() -> str:
    found = [(family.title, [size["name"] for size in family.sizes]) for family in recognised().values()]
    return ", ".join(f"{title} ({', '.join(sizes)})" for title, sizes in sorted(found))


def _by_naming(family: Family, told: Callable[[Family, str], list[str]]) -> str:
    found: dict[str, list[str]] = {}
    for naming in family.namings:
        if names := told(family, naming):
            found.setdefault(", ".join(f"`{name}`" for name in names), []).append(naming)
    return "; ".join(f"{', '.join(namings)}: {names}" for names, namings in found.items()) or "nothing"


def _fused(family: Family, naming: str) -> list[str]:
    places = [template.places[naming] for template in family.templates.values()]
    return _endings(place.name for place in places if place.index is not None)


def _reordered(family: Family, naming: str) -> list[str]:
    places = [template.places[naming] for template in family.templates.values()]
    return _endings(place.name for place in places if place.order or place.turn)


def _endings(paths: Iterable[str]) -> list[str]:
    """Paths without the block, each once."""
    inside = [re.sub(r"^.*<[a-z]>\.(?!\d+$)", "", path) for path in paths]
    return list(dict.fromkeys(re.sub(r"^.*\.(\w+)\.<[a-z]>", r"\1.N", path) for path in inside))


def _read_by_diffusers(family: str) -> str:
    reading = next(consumer for consumer in consumers() if consumer.name == "diffusers").families[family]
    found = [
        f"`{profile}`" + (" inside the blocks" if "outside" in row else "")
        for profile, row in reading.profiles.items()
        if ALL not in row and profile != SAME_AS_INPUT
    ]
    loader = "" if families()[family].diffusers.loader else ", by the network's `load_lora_adapter`"
    return ", ".join(found) + loader


def _families() -> list[str]:
    return list(dict.fromkeys(family for consumer in consumers() for family in consumer.families))


def _programs() -> str:
    rows = [
        [
            consumer.name,
            _versions(consumer.looked_at),
            f"{consumer.scale:g}",
        ]
        for consumer in consumers()
    ]
    return _table(["program", "looked at", "scale at strength 1"], rows)


def _family(family: str) -> str:
    known = [consumer for consumer in consumers() if family in consumer.families]
    lines = [f"### {families()[family].title}", "", "How a file is loaded at strength 1:", ""]
    lines += [
        f"- {consumer.name}: `{consumer.families[family].load}`{_looked_at(consumer, family)}" for consumer in known
    ]
    for profile in PROFILE_NAMES:
        read = [consumer for consumer in known if profile in consumer.families[family].profiles]
        if read:
            lines += ["", f"#### `--to {profile}`", "", _profile(family, profile, read)]
    return "\n".join(lines)


def _looked_at(consumer: Consumer, family: str) -> str:
    own = consumer.families[family].looked_at
    return f", looked at: {_versions(own)}" if own else ""


def _versions(looked_at: dict[str, str]) -> str:
    return "; ".join(f"{version} ({HOW[how]})" for version, how in looked_at.items())


def _profile(family: str, profile: str, read: list[Consumer]) -> str:
    parts = [part for part in PARTS if writable(profile, part) and (part != ADDED or families()[family].added)]
    rows: list[list[str]] = []
    strangers: dict[str, list[str]] = {}
    remarks: list[str] = []
    for consumer in read:
        row = consumer.families[family].profiles[profile]
        said = [
            f"{consumer.name}, {PARTS.get(part, 'everything')}: {row[part].remark}" for part in row if row[part].remark
        ]
        remarks += said
        if ALL in row:
            strangers.setdefault(OUTCOMES[row[ALL].word], []).append(consumer.name)
            continue
        rows.append([consumer.name, *(CELLS[row[part].word] if part in row else "yes" for part in parts)])
    lines = [_table(["program", *(PARTS[part] for part in parts)], rows)] if rows else []
    lines += [f"Not read, {what}: {', '.join(names)}." for what, names in strangers.items()]
    lines += [remark + "." for remark in remarks]
    return "\n\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    FORMATS.write_text(formats_page(), "utf-8")
