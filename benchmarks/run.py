"""Time and memory of loraport against the published procedure done densely, on real-shaped synthetic models.

    python benchmarks/run.py                 speed, memory and a block of 14B, as in docs/benchmarks.md
    python benchmarks/run.py --quick         one block, one round, no memory series
    python benchmarks/run.py --parts speed --clock cpu --cores 1    seconds of one core, on a machine that is not idle

Every figure comes from processes of their own, restricted to two cores, one after the other; rounds take the
programs in turn, so that a machine that drifts hits all of them, and the median over rounds is quoted.
This file imports no torch: the memory of a child would otherwise begin with that of its parent.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import measure

HERE = Path(__file__).parent
GIGA = 1e9
LORAS = 4
TRIES = 3
PARTS = ("speed", "memory", "large")


def main() -> None:
    """Command line."""
    args = _arguments()
    cores = measure.use_cores(args.cores)
    bench = Bench(args.work, len(cores), args.clock)
    measures = {
        "speed": (lambda: bench.speed(args.size, args.blocks, args.rounds, args.calm), _show_speed),
        "memory": (lambda: bench.memory(args.size, args.memory_blocks), _show_memory),
        "large": (lambda: bench.large(args.large_size), _show_large),
    }
    results = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        for part in args.parts:
            take, show = measures[part]
            about = {"command": " ".join(["python benchmarks/run.py", *sys.argv[1:]])}
            about |= {"date": time.strftime("%Y-%m-%d"), "machine": measure.machine()}
            with measure.Others() as others:
                found = take()
            results[part] = {**about, "others_share": others.share, "found": found}
            show(found)
            print(f"\nOther programs took {others.share:.0%} of the cores meanwhile.")
            args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    finally:
        if not args.keep:
            shutil.rmtree(args.work, ignore_errors=True)
    print(f"\nall figures: {args.json}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=2, help="transformer blocks in the timed model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the processor, all threads")
    parser.add_argument(
        "--calm", type=float, default=1.0, help="repeat rounds in which other programs took a larger share of the cores"
    )
    parser.add_argument("--size", default="1.3B")
    parser.add_argument("--memory-blocks", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--large-size", default="14B")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "bench", help="scratch folder, emptied")
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder, to save time next time")
    parser.add_argument("--json", type=Path, default=HERE.parent / "build" / "benchmarks.json")
    args = parser.parse_args()
    if args.quick:
        args.blocks, args.rounds, args.parts = 1, 1, ["speed"]
    if args.clock == "cpu":
        args.calm = 100.0  # whatever the others do
    return args


class Bench:
    """The measurements; every method returns plain values."""

    def __init__(self, work: Path, cores: int, clock: str) -> None:
        """Keep scratch files under `work`."""
        self._work, self._cores, self._clock = work, cores, clock

    def speed(self, size: str, blocks: int, rounds: int, calm: float) -> dict[str, Any]:
        """First and further LoRAs, ours and the dense procedure's, and the products that both must do."""
        pair = self._pair(size, blocks)
        found: list[dict[str, Any]] = []
        for _ in range(TRIES * rounds):
            with measure.Others() as others:
                one = self._round(pair, size, blocks)
            found.append(one | {"others_share": others.share})
            if sum(one["others_share"] <= calm for one in found) == rounds:
                break
        found = sorted(found, key=lambda one: one["others_share"])[:rounds]
        names = list(found[0]["per_block"])
        middle = {name: median(one["per_block"][name] for one in found) for name in names}
        ratios = {
            "first_speedup": median(o["per_block"]["dense_first"] / o["per_block"]["ours_first"] for o in found),
            "further_speedup": median(o["per_block"]["dense_further"] / o["per_block"]["ours_further"] for o in found),
            "first_to_products": median(o["per_block"]["ours_first"] / o["per_block"]["products"] for o in found),
            "further_to_products": median(o["per_block"]["ours_further"] / o["per_block"]["products"] for o in found),
        }
        whole = self._whole_process(pair)
        return {
            "size": size,
            "blocks": blocks,
            "clock": self._clock,
            "per_block": middle,
            **ratios,
            "whole": whole,
            "rounds": found,
        }

    def _round(self, pair: dict[str, Any], size: str, blocks: int) -> dict[str, Any]:
        dense_work, cache = self._fresh("dense"), self._fresh("cache")
        many = [part for lora in pair["loras"] for part in ("--lora", lora, "--out", self._work / "out.safetensors")]
        both = ["--source", pair["source"], "--target", pair["target"], *many]
        timed = ("--clock", self._clock)
        dense_run = self._python("published_dense.py", *both, "--work", dense_work, *timed)
        dense = json.loads(dense_run.stdout)
        shutil.rmtree(dense_work)
        ours_run = self._python("ours.py", *both, "--cache", cache, *timed)
        ours = json.loads(ours_run.stdout)
        products = json.loads(self._python("products.py", "--size", size, "--cores", self._cores, *timed).stdout)
        steps = {name: _total(dense[name]) for name in ("bases", "drift")}
        transfers = [_total(one) for one in dense["transfers"]]
        seconds = {
            "dense_bases": steps["bases"],
            "dense_drift": steps["drift"],
            "dense_first": sum(steps.values()) + transfers[0],
            "dense_further": median(transfers[1:]),
            "ours_first": ours[0]["seconds"],
            "ours_further": median(one["seconds"] for one in ours[1:]),
        }
        per_block = {name: value / blocks for name, value in seconds.items()} | {"products": products["seconds"]}
        return {
            "per_block": per_block,
            "peak": {"dense": dense_run.peak, "ours": ours_run.peak},
            "dense": dense,
            "ours": ours,
            "products": products,
        }

    def _whole_process(self, pair: dict[str, Any]) -> dict[str, float]:
        """Time of the command, program start included: cold cache, another LoRA, the same again."""
        cache = self._fresh("cache")
        found: dict[str, measure.Finished] = {}
        for what, lora in (("first", 0), ("further", 1), ("repeated", 1)):
            found[what] = self._command(pair, pair["loras"][lora], cache)
        found["start"] = measure.run([self._loraport(), "--version"], self._cores)
        return {what: done.cpu if self._clock == "cpu" else done.wall for what, done in found.items()}

    def memory(self, size: str, blocks: list[int]) -> list[dict[str, Any]]:
        """Peak resident memory of the command for models of different depth, empty and filled cache."""
        rows = []
        for count in blocks:
            pair, cache = self._pair(size, count), self._fresh("cache")
            row: dict[str, Any] = {"blocks": count}
            for what, lora in (("first", 0), ("further", 1)):
                done = self._command(pair, pair["loras"][lora], cache)
                row |= {f"{what}_peak": done.peak, f"{what}_wall": done.wall}
            row["checkpoint_bytes"] = Path(pair["source"]).stat().st_size
            rows.append(row)
        return rows

    def large(self, size: str) -> dict[str, Any]:
        """One block of a large model, layer by layer: peak memory and seconds of each kind of layer."""
        pair, cache = self._pair(size, 1, loras=2), self._fresh("cache")
        found: dict[str, Any] = {"size": size}
        for what, lora in (("first", 0), ("further", 1)):
            done = self._python(
                "ours.py",
                *("--source", pair["source"], "--target", pair["target"], "--cache", cache),
                *("--lora", pair["loras"][lora], "--out", self._work / "out.safetensors"),
            )
            run = json.loads(done.stdout)[0]
            found[what] = {"seconds": run["seconds"], "peak": done.peak, "layers": run["layers"]}
        products = self._python("products.py", "--size", size, "--cores", self._cores, "--repeat", 1)
        found["products"] = json.loads(products.stdout)
        return found

    def _pair(self, size: str, blocks: int, loras: int = LORAS) -> dict[str, Any]:
        folder = self._work / f"{size}-{blocks}"
        done = self._python("synthetic.py", folder, "--size", size, "--blocks", blocks, "--loras", loras)
        source, target, *rest = done.stdout.split("\n")[: 2 + loras]
        return {"source": source, "target": target, "loras": rest}

    def _command(self, pair: dict[str, Any], lora: str, cache: Path) -> measure.Finished:
        """`loraport transfer` as a user would call it."""
        out = self._work / "out.safetensors"
        flags = ["--method", "casa", "--rank", "32", "--device", "cpu", "--overwrite", "--quiet", "--cache", str(cache)]
        files = ["-s", pair["source"], "-t", pair["target"], "-o", str(out)]
        return measure.run([self._loraport(), "transfer", lora, *files, *flags], self._cores)

    def _loraport(self) -> str:
        return str(Path(sys.executable).with_name("loraport"))

    def _python(self, script: str, *arguments: object) -> measure.Finished:
        return measure.run([sys.executable, str(HERE / script), *map(str, arguments)], self._cores)

    def _fresh(self, name: str) -> Path:
        folder = self._work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def _total(steps: dict[str, dict[str, float]]) -> float:
    return sum(one["seconds"] for one in steps.values())


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 1) + (":" if at else "-") for at, width in enumerate(widths)) + "|")


def _show_speed(found: dict[str, Any]) -> None:
    per = found["per_block"]
    worst = max(one["others_share"] for one in found["rounds"])
    clock = "Seconds of the processor" if found["clock"] == "cpu" else "Seconds"
    print(f"\n{clock} per block, {found['size']} shapes, median of {len(found['rounds'])} rounds", end="")
    print(f" (other programs took at most {worst:.0%} of the cores)\n")
    rows = [("", "dense", "loraport", "ratio", "to the products")]
    for what in ("first", "further"):
        dense, ours = per[f"dense_{what}"], per[f"ours_{what}"]
        speedup, floor = found[f"{what}_speedup"], found[f"{what}_to_products"]
        rows.append((f"{what} LoRA", f"{dense:.2f}", f"{ours:.2f}", f"{speedup:.1f}x", f"{floor:.2f}"))
    rows.append(("unavoidable products", "", f"{per['products']:.3f}", "", "1.00"))
    _table(rows)
    walls = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in found["whole"].items())
    print(f"\nThe command as a process, {found['blocks']} blocks: {walls}")
    peaks = {who: max(one["peak"][who] for one in found["rounds"]) / GIGA for who in ("dense", "ours")}
    print(f"Peak memory over all LoRAs in one process: dense {peaks['dense']:.2f} GB, loraport {peaks['ours']:.2f} GB")


def _show_memory(rows: list[dict[str, Any]]) -> None:
    print("\nPeak resident memory of the command\n")
    table = [("blocks", "checkpoint GB", "first LoRA GB", "further LoRA GB", "first s", "further s")]
    for row in rows:
        sizes = (row["checkpoint_bytes"], row["first_peak"], row["further_peak"])
        walls = (row["first_wall"], row["further_wall"])
        cells = [*(f"{size / GIGA:.2f}" for size in sizes), *(f"{wall:.1f}" for wall in walls)]
        table.append((str(row["blocks"]), *cells))
    _table(table)


def _show_large(found: dict[str, Any]) -> None:
    print(f"\nOne block of {found['size']} shapes\n")
    table = [("", "seconds", "peak GB", "to the products")]
    for what in ("first", "further"):
        run = found[what]
        ratio = run["seconds"] / found["products"]["seconds"]
        table.append((f"{what} LoRA", f"{run['seconds']:.1f}", f"{run['peak'] / GIGA:.2f}", f"{ratio:.2f}"))
    table.append(("unavoidable products", f"{found['products']['seconds']:.1f}", "", "1.00"))
    _table(table)


if __name__ == "__main__":
    main()
