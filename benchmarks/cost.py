"""What a transfer costs: the formulas of docs/cost.md against what torch, the system and the clock count.

    python benchmarks/cost.py                        operations, bytes and seconds of each step, predicted / measured
    python benchmarks/cost.py --shapes 5120x5120     on other layers
    python benchmarks/cost.py --catalogue            what 100,000 LoRAs on 20 targets take, by machines.json
    python benchmarks/cost.py --rates NAME           measures this machine's rates and puts them there
    python benchmarks/cost.py ... --write            puts what is printed into its page

Predictions come from the functions that `loraport plan` uses (`engine/layer_work.py`, `methods/cost.py`). Seconds are
those of the processor on one thread, so that a busy machine disturbs them little.
"""

import argparse
import contextlib
import io
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import catalogue
import loraport
from counting import counted
from loraport.engine.job_cost import ChosenMethod
from loraport.engine.layer_work import Have, LayerKind, Work, seconds_of, work_of
from loraport.engine.measuring import measure
from loraport.engine.plan import make_plan
from loraport.engine.rates import Rates
from loraport.engine.recipe import Recipe
from loraport.threads import threads_of_torch
from steps import steps
from synthetic import write_pair

SHAPES = ("512x512", "1536x1536", "1024x4096")
PARTS = {"measured": "cost-measured.md", "catalogue": "catalogue.md"}
TRIES = 5  # of the rates of a machine, of which each one's best counts: other programs only slow it down
PAGES = {part: Path(__file__).parents[1] / "docs" / name for part, name in PARTS.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--size", default="1.3B", help="of the block whose bytes are counted")
    parser.add_argument("--catalogue", action="store_true")
    parser.add_argument("--rates", metavar="NAME", help="measure this machine, and keep that under this name")
    parser.add_argument("--write", action="store_true", help="into docs/cost-measured.md or docs/catalogue.md")
    args = parser.parse_args()
    if args.rates:
        catalogue.remember(args.rates, [measure("cpu", None) for _ in range(TRIES)])
    elif args.catalogue:
        _tell("catalogue", catalogue.tables(), write=args.write)
    else:
        with threads_of_torch(1):
            rates = measure("cpu", None)
            parts = [steps_table(args.shapes, args.rank, rates), bytes_table(args.size, args.rank)]
        _tell("measured", "\n\n".join(parts), write=args.write)


def _tell(what: str, text: str, *, write: bool) -> None:
    print(text)
    if write:
        PAGES[what].write_text(with_part(PAGES[what].read_text("utf-8"), what, text), encoding="utf-8")


def with_part(page: str, what: str, text: str) -> str:
    """The page with one of its made parts replaced."""
    begin, end = f"<!-- made by benchmarks/cost.py: {what} -->", "<!-- end -->"
    before, found, rest = page.partition(begin)
    if not found:
        raise SystemExit(f"{PAGES[what]} has no place for {what}")
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


# ---- operations ------------------------------------------------------------------------------------------------------


def steps_table(shapes: list[str], rank: int, rates: Rates) -> str:
    """Operations and seconds of each step, predicted / measured."""
    kinds = ["products, 10⁹", "eigenproblems, 10⁹", "factorisations, 10⁹", "passes, MB", "seconds"]
    rows = [["layer", "method", "step", *kinds]]
    for text in shapes:
        m, n = map(int, text.split("x"))
        for step in steps((m, n), rank):
            real, seconds = counted(step.work), _seconds(step.work)
            said = step.predicted
            cells = [
                (said.products / 1e9, real.products / 1e9),
                (said.decompositions / 1e9, real.decompositions / 1e9),
                (said.factorisations / 1e9, real.factorisations / 1e9),
                (said.passes / 1e6, real.passes / 1e6),
                (seconds_of(Work(said), rates), seconds),
            ]
            told = (f"{_short(a)} / {_short(b)}" if a or b else "" for a, b in cells)
            rows.append([text, step.method, step.name, *told])
    return catalogue.table(rows)


def _seconds(work: Callable[[], object], repeat: int = 2) -> float:
    found = []
    for _ in range(repeat):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


# ---- bytes -----------------------------------------------------------------------------------------------------------


def bytes_table(size: str, rank: int) -> str:
    """Bytes that whole transfers of a block read and write, as the system counts them, against the formulas."""
    rows = [["method", "run", "read, MB", "written, MB", "kept in the cache, MB"]]
    with tempfile.TemporaryDirectory(prefix="cost-") as folder:
        for row in transfers(Path(folder), size, rank):
            pairs = ((row.read, row.read_really), (row.written, row.written_really), (row.kept, row.kept_really))
            rows.append([row.method, row.run, *(f"{said / 1e6:.1f} / {was / 1e6:.1f}" for said, was in pairs)])
    return catalogue.table(rows)


@dataclass(frozen=True)
class Bytes:
    """Of one transfer, by the formulas and really."""

    method: str
    run: str
    read: int
    read_really: int
    written: int
    written_really: int
    kept: int
    kept_really: int


def transfers(folder: Path, size: str, rank: int) -> Iterator[Bytes]:
    """First and further LoRA of each method, by whole runs."""
    pair = write_pair(folder / "pair", size, 1, loras=3, rank=rank)
    for method in ("casa", "matched-gain", "direct"):
        cache = folder / "cache" / method
        _run(pair, method, 2, "off", folder)  # whatever is loaded at the first call
        for run, lora in (("first", 0), ("further", 1)):
            said, output = _predicted(pair, method, lora, run)
            entries = _entries(cache)
            before = _io()
            _run(pair, method, lora, str(cache), folder)
            after = _io()
            kept = _entries(cache) - entries
            yield Bytes(
                method,
                run,
                said.read + said.fetch + 2 * output,  # which is read again for its hash, and compared
                after[0] - before[0],
                said.keep + output,
                after[1] - before[1],
                said.keep,
                kept,
            )
        shutil.rmtree(cache)


def _predicted(pair, method: str, lora: int, run: str) -> tuple[Work, int]:
    recipe = Recipe(lora=str(pair.loras[lora]), source=str(pair.source), target=str(pair.target), method=method)
    plan = make_plan(recipe)
    parts = []
    for job in plan.jobs:
        asked = ChosenMethod.of(job)
        have = Have(stores=True, keeps=True)
        if run == "further":
            have = Have(True, False, asked.bases, asked.method.prepared_key(asked.params) is not None, True, True)
        parts.append(work_of(LayerKind.of(job), asked, have))
    return sum(parts, Work()), plan.output_bytes


def _run(pair, method: str, lora: int, cache: str, folder: Path) -> None:
    options = loraport.RunOptions(device="cpu", executor="serial", cache=cache, log="off", overwrite=True)
    with contextlib.redirect_stdout(io.StringIO()):
        loraport.transfer(
            pair.loras[lora],
            source=pair.source,
            target=pair.target,
            output=folder / "out.safetensors",
            method=method,
            options=options,
        )


def _io() -> tuple[int, int]:
    """Bytes that this process asked the system to read and to write so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["wchar"])


def _entries(cache: Path) -> int:
    return sum(file.stat().st_size for file in cache.rglob("*.safetensors"))


if __name__ == "__main__":
    main()
    print(f"\nPeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
