"""What `loraport plan` predicts against what `loraport transfer` takes, cold and warm, on real-shaped synthetic models.

    python benchmarks/plan_accuracy.py                        two blocks of Wan2.1-1.3B's shapes
    python benchmarks/plan_accuracy.py --methods casa --blocks 4

Each run is a process of its own. `cold` begins with an empty cache; `further` is another LoRA for the same pair;
`again` the same one once more. Time is compared twice: by the clock, which other programs spoil, and by the
processor's time of the command against what the plan expects all workers together to be at work, the start of the
program included in both.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import measure

HERE = Path(__file__).parent
METHODS = ("casa", "matched-gain", "direct", "uniform-shrink", "prolora")


@dataclass(frozen=True)
class Row:
    """One run: predicted and measured."""

    method: str
    state: str
    seconds: tuple[float, float]
    busy: tuple[float, float]
    peak: tuple[float, float]
    cache: tuple[float, float]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--size", default="1.3B")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--work", type=Path, help="where the models lie or will be written; kept")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="plan-accuracy-"))
    try:
        with measure.Others() as others:
            rows = _rows(work, args.size, args.blocks, args.methods)
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(_table(rows))
    print(
        f"\n{args.blocks} blocks, predicted / measured. Other programs took {others.share:.0%} of the cores meanwhile."
    )
    if args.json is not None:
        args.json.write_text(json.dumps([row.__dict__ for row in rows], indent=1), encoding="utf-8")


def _rows(work: Path, size: str, blocks: int, methods: list[str]) -> list[Row]:
    pair = work / f"{size}-{blocks}"
    made = [str(HERE / "synthetic.py"), str(pair), "--size", size, "--blocks", str(blocks)]
    measure.run([sys.executable, *made])
    rates = work / "rates"  # measured once, as on a user's machine
    rows = []
    for method in methods:
        cache = work / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        if (rates / "machine").is_dir():
            shutil.copytree(rates / "machine", cache / "machine")
        for state, lora in (("cold", 1), ("further", 2), ("again", 2)):
            models = ["--source", str(pair / "source.safetensors"), "--target", str(pair / "target.safetensors")]
            files = [str(pair / f"lora-{lora}.safetensors"), *models, "--method", method, "--cache", str(cache)]
            planned = json.loads(_loraport(["plan", *files, "--json"]).stdout)["cost"]
            before = _bytes(cache)
            out = ["-o", str(work / "out.safetensors"), "--overwrite", "--log", "off", "--quiet"]
            spent = getrusage(RUSAGE_CHILDREN)
            done = _loraport(["transfer", *files, *out])
            now = getrusage(RUSAGE_CHILDREN)
            busy = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
            rows.append(
                Row(
                    method,
                    state,
                    (planned["seconds"], done.wall),
                    (planned["busy_seconds"], busy),
                    (planned["peak_bytes"] / 1e9, done.peak / 1e9),
                    (planned["cache_bytes"] / 1e9, (_bytes(cache) - before) / 1e9),
                )
            )
            print(rows[-1], file=sys.stderr)
        if not (rates / "machine").is_dir():
            shutil.copytree(cache / "machine", rates / "machine")
    shutil.rmtree(work / "cache", ignore_errors=True)
    return rows


def _loraport(words: list[str]) -> measure.Finished:
    return measure.run([sys.executable, "-m", "loraport", *words], cores=1)  # layers run on one thread each anyway


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _table(rows: list[Row]) -> str:
    lines = [
        "| method | run | seconds | of the processor | peak, GB | cache, GB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{said:.2f} / {was:.2f}" for said, was in (row.seconds, row.busy, row.peak, row.cache)]
        lines.append(" | ".join(["| " + row.method, row.state, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
