"""An analysis of a pair and a LoRA against a transfer of that LoRA with casa, each from an empty cache.

    python benchmarks/analyze.py                 one block of 1.3B shapes

Processor time (all threads) is what is compared, so that it can be run on a machine that is not idle. The peak is that
of the process so far, so the second shows only if it is higher.
"""

import argparse
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

import loraport
import measure
from synthetic import SIZES, write_pair

HERE = Path(__file__).parent


def timed(call: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds of the processor and by the clock, and the peak so far in GB."""
    began, wall = time.process_time(), time.perf_counter()
    call()
    seconds = time.process_time() - began, time.perf_counter() - wall
    return *seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "analyze", help="scratch folder, emptied")
    args = parser.parse_args()
    pair = write_pair(args.work / "models", args.size, args.blocks, loras=1)
    torch.linalg.svd(torch.eye(8) @ torch.eye(8))  # the libraries' own start is not part of the work

    def options(name: str) -> loraport.RunOptions:
        cache = str(args.work / name)
        return loraport.RunOptions(device="cpu", cache=cache, log="off", overwrite=True, workers=args.workers)

    lora, output = pair.loras[0], args.work / "made.safetensors"
    with measure.Others() as others:
        transfer = timed(
            lambda: loraport.transfer(
                lora, source=pair.source, target=pair.target, method="casa", rank=32, output=output,
                options=options("one"),
            )
        )  # fmt: skip
        analysis = timed(lambda: loraport.analyze(pair.source, pair.target, lora, options=options("two")))
        warm = timed(lambda: loraport.analyze(pair.source, pair.target, lora, options=options("one")))
    for name, (seconds, wall, peak) in {
        "transfer, cold": transfer, "analyze, cold": analysis, "analyze after the transfer": warm,
    }.items():  # fmt: skip
        print(f"{name:28} {seconds:8.2f} s of the processor {wall:8.1f} s by the clock, peak so far {peak:.2f} GB")
    ratios = f"{analysis[0] / transfer[0]:.2f} times the transfer, after it {warm[0] / transfer[0]:.2f}"
    print(f"{ratios}; other programs took {others.share:.0%} of the cores")
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
