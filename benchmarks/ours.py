"""loraport in one process: several LoRAs for the same pair, each timed as one call of the Python API.

    python benchmarks/ours.py --source S --target T --cache DIR --lora L1 --out O1 --lora L2 --out O2

Importing and one tiny matrix product happen before the clock starts. Prints one JSON object.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import loraport


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--cache", required=True, help="folder of the cache; empty for a cold start")
    parser.add_argument("--lora", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, action="append", required=True)
    parser.add_argument("--executor", default="thread")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--layers", default=None)
    parser.add_argument("--method", default="casa", help="the published method, as its rival; or another")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the processor, all threads")
    args = parser.parse_args()
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    options = loraport.RunOptions(
        device="cpu", executor=args.executor, workers=args.workers, cache=args.cache, overwrite=True, log="off"
    )
    torch.linalg.svd(torch.eye(8) @ torch.eye(8))  # the libraries' own start is not part of the work
    transfer, runs = loraport.transfer, []  # imports what it needs
    for lora, out in zip(args.lora, args.out, strict=True):
        began = clock()
        report = transfer(
            lora,
            source=args.source,
            target=args.target,
            output=out,
            method=args.method,
            rank=32,
            layers=args.layers,
            options=options,
        )
        seconds = clock() - began
        runs.append(
            {
                "seconds": seconds,
                "peak_so_far": _high_water(),
                "energy_kept_total": report.summary.energy_kept_total,
                "cached_layers": report.summary.cached_layers,
                "layers": {layer.name: {"seconds": layer.seconds} | layer.stats for layer in report.layers},
            }
        )
    print(json.dumps(runs))


def _high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
