"""Writes the tables of families and of the programs that load LoRAs into docs/: `python docs/tables.py`.

A table stands in a page between `<!-- made by docs/tables.py: NAME -->` and `<!-- end -->`. NAME is one of `tables()`.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from loraport.adapters.consumers import ADDED, ALL, HOW, PARTS, Consumer, consumers, writable
from loraport.adapters.dialect import PROFILE_NAMES, SAME_AS_INPUT
from loraport.models.families import families, recognised
from loraport.models.family import Family

DOCS = Path(__file__).parent
MARK = re.compile(r"(<!-- made by docs/tables\.py: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
UNREAD = {"quiet": "no", "warning": "no (log)", "count": "no (count)", "error": "**refused**"}
LIMITS = {"outside": " inside the blocks", "reordered": " but for rows in another order"}
CELLS = {
    "quiet": "without {}",
    "warning": "without {} (log)",
    "count": "without {} (count)",
    "outside": "{} in the blocks only",
    "error": "**refused** with {}",
    "wrong": "**wrong** in {}",
    "unknown": "? {}",
}
SHORT = {
    "partial": "incomplete",
    "added": "variants",
    "bias": "biases",
    "norm": "norms",
    "text_encoder": "text encoder",
}


def tables() -> dict[str, Callable[[], str]]:
    """Name in the mark -> what makes the table."""
    whole = {"families": _families_known, "which --to": _choice, "parts of a file": _parts, "versions": _programs}
    return whole | {families()[name].title: partial(_family, name) for name in _families()}


def pages() -> dict[Path, str]:
    """Every page with a table, as it should be."""
    made = tables()
    found = {}
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text("utf-8")
        if MARK.search(text):
            found[path] = MARK.sub(lambda mark: f"{mark[1]}\n{made[mark[2]]()}\n\n{mark[3]}", text)
    return found


def placed() -> list[str]:
    """The names of the tables, in the order in which the pages have them."""
    return [name for text in pages().values() for _, name, _ in MARK.findall(text)]


def _families_known() -> str:
    return f"{_known()}\n\nOnly recognised: {_recognised()}."


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
        f"`{profile}`" + next((said for part, said in LIMITS.items() if part in row), "")
        for profile, row in reading.profiles.items()
        if ALL not in row and profile != SAME_AS_INPUT
    ]
    loader = "" if families()[family].diffusers.loader else ", by the network's `load_lora_adapter`"
    return ", ".join(found) + loader


def _families() -> list[str]:
    return list(dict.fromkeys(family for consumer in consumers() for family in consumer.families))


def _choice() -> str:
    names = [name for name in PROFILE_NAMES if name != SAME_AS_INPUT]
    rows = [[consumer.name, *(_read(consumer, name) for name in names)] for consumer in consumers()]
    return _table(["program", *(f"`{name}`" for name in names)], rows)


def _read(consumer: Consumer, profile: str) -> str:
    """The families of which a program reads a profile: their layers inside the blocks arrive."""
    rows = {family: reading.profiles.get(profile) for family, reading in consumer.families.items()}
    read = {families()[family].title: row for family, row in rows.items() if row is not None and ALL not in row}
    return ", ".join(f"{title} (\\*)" if "partial" in row else title for title, row in read.items())


def _parts() -> str:
    return _table(["word", "part of a file"], [[SHORT.get(part, part), title] for part, title in PARTS.items()])


def _programs() -> str:
    rows = [
        [
            consumer.name,
            _versions(consumer.looked_at),
            f"{consumer.scale:g}",
            "; ".join(f"{name} ({version})" for name, version in consumer.also.items()),
        ]
        for consumer in consumers()
    ]
    return _table(["program", "looked at", "scale at strength 1", "the same loader has"], rows)


def _family(family: str) -> str:
    known = [consumer for consumer in consumers() if family in consumer.families]
    profiles = [name for name in PROFILE_NAMES if any(name in each.families[family].profiles for each in known)]
    rows = [[each.name, *(_cell(each, family, name) for name in profiles)] for each in known]
    lines = [f"## {families()[family].title}", "", "How a file is loaded at strength 1:", ""]
    lines += [f"- {each.name}: `{each.families[family].load}`{_looked_at(each, family)}" for each in known]
    lines += ["", _table(["program", *(f"`{name}`" for name in profiles)], rows)]
    remarks: dict[tuple[str, str, str], list[str]] = {}
    for each in known:
        for name, row in each.families[family].profiles.items():
            for part, outcome in row.items():
                if outcome.remark:
                    remarks.setdefault((each.name, part, outcome.remark), []).append(f"`{name}`")
    for (program, part, remark), names in remarks.items():
        of = "" if part == ALL else f" ({SHORT.get(part, part)})"
        lines += ["", f"{program}, {', '.join(names)}{of}: {remark}."]
    return "\n".join(lines)


def _looked_at(consumer: Consumer, family: str) -> str:
    own = consumer.families[family].looked_at
    return f", looked at: {_versions(own)}" if own else ""


def _versions(looked_at: dict[str, str]) -> str:
    return "; ".join(f"{version} ({HOW[how]})" for version, how in looked_at.items())


def _cell(consumer: Consumer, family: str, profile: str) -> str:
    row = consumer.families[family].profiles.get(profile)
    if row is None:
        return "?"
    if ALL in row:
        return f"part{UNREAD[row[ALL].word].removeprefix('no')}" if row[ALL].arrives else UNREAD[row[ALL].word]
    parts = [part for part in PARTS if part in row and writable(profile, part)]
    parts = [part for part in parts if part != ADDED or families()[family].added]
    told = {word: [SHORT.get(part, part) for part in parts if row[part].word == word] for word in CELLS}
    return "; ".join(CELLS[word].format(", ".join(names)) for word, names in told.items() if names) or "all"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for each, text in pages().items():
        each.write_text(text, "utf-8")
