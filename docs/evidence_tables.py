"""Writes evidence-tables.md from what `loraport evaluate` made: its tables without those of single pairs.

    make evidence                                           # evidence-output
    loraport evaluate --held-out -o held-out-output
    loraport evaluate --method calibrated -o calibrated-output
    python docs/evidence_tables.py evidence-output --held-out held-out-output --calibrated calibrated-output

Parts that are not given stay as they are in the page.
"""

import argparse
import re
from pathlib import Path

PAGE = Path(__file__).parent / "evidence-tables.md"
HEAD = (
    "# Evidence: the long tables\n\n"
    "Made by the commands of [evidence.md](evidence.md) and `docs/evidence_tables.py`. Values are means over pairs of "
    "a LoRA and a target, with standard errors; differences are paired. Rows differ in the pairs on which they were "
    'measured (column "pairs"): all, ten (two targets), five (`dmd`) or two.\n'
)
PARTS = ("chosen", "held out", "calibrated")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the folder of `loraport evaluate`")
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--calibrated", type=Path)
    args = parser.parse_args()
    given = zip(PARTS, (args.output, args.held_out, args.calibrated), strict=True)
    parts = _standing() | {name: _read(name, folder) for name, folder in given if folder}
    PAGE.write_text("\n".join([HEAD, *(f"{_mark(name)}\n{parts[name]}" for name in PARTS if name in parts)]))


def _mark(name: str) -> str:
    return f"<!-- {name} -->"


def _standing() -> dict[str, str]:
    if not PAGE.exists():
        return {}
    found = re.split(r"^<!-- (.*) -->\n", PAGE.read_text(), flags=re.M)
    return {name: text.rstrip() + "\n" for name, text in zip(found[1::2], found[2::2], strict=True)}


def _read(name: str, folder: Path) -> str:
    """The sections of a `tables.md` that are about all pairs; of a calibration what it gave and took."""
    _, *sections = re.split(r"^## ", (folder / "tables.md").read_text(), flags=re.M)
    general = [section for section in sections if not re.match(r"[\w-]+ on [\w-]+\n", section)]
    if name == "calibrated":
        general = [section for section in general if section.startswith(("All rows", "Calibration: what"))]
    prefix = {"held out": "Held out: ", "calibrated": "Calibrated: "}.get(name, "")
    return "\n".join(f"## {prefix}{section.rstrip()}\n" for section in general)


if __name__ == "__main__":
    main()
