"""Writes the tables of docs/consumers.md from the rows in the package: `python docs/tables.py`."""

from pathlib import Path

from loraport.adapters.consumers import ADDED, ALL, OUTCOMES, PARTS, Consumer, consumers, writable
from loraport.adapters.dialect import PROFILE_NAMES
from loraport.models.family import families

PAGE = Path(__file__).parent / "consumers.md"
BEGIN, END = "<!-- made by docs/tables.py from src/loraport/adapters/consumers.yaml -->", "<!-- end -->"
HOW = {"run": "run", "part": "part run, part read", "read": "read"}
CELLS = {"quiet": "no", "warning": "no (log)", "count": "no (count)", "outside": "blocks only", "error": "**refused**"}
CELLS["unknown"] = "?"


def page() -> str:
    """The whole page as it should be."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [_programs()] + [_family(name) for name in _families()]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(tables) + f"\n\n{END}{after}"


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
