"""Ten LoRAs in one job against one, from an empty cache: processor time of two calls in one process.

    python benchmarks/many.py                        two blocks of 1.3B shapes, casa
    python benchmarks/many.py --blocks 30 --loras 10

Processor time (all threads) is what is compared, so that it can be run on a machine that is not idle; what other
programs took is printed too. Writing the models, importing and one tiny decomposition come before the clock starts.
"""

import argparse
import resource
import shutil
from pathlib import Path

import torch

import loraport
import measure
from synthetic import SIZES, write_pair

HERE = Path(__file__).parent


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--loras", type=int, default=10)
    parser.add_argument("--method", default="casa")
    parser.add_argument("--cache", choices=("cold", "off"), default="cold", help="an empty cache, or none at all")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "many", help="scratch folder, emptied")
    args = parser.parse_args()
    pair = write_pair(args.work / "models", args.size, args.blocks, loras=args.loras)
    torch.linalg.svd(torch.eye(8) @ torch.eye(8))  # the libraries' own start is not part of the work

    def options(name: str) -> loraport.RunOptions:
        return loraport.RunOptions(
            device="cpu", cache="off" if args.cache == "off" else str(args.work / name), log="off", overwrite=True
        )

    models = {"source": pair.source, "target": pair.target, "method": args.method, "rank": 32}
    output = args.work / "made"
    with measure.Others() as others:
        one = measure.timed(
            lambda: loraport.transfer(
                pair.loras[0], output=output / "alone.safetensors", options=options("first"), **models
            )
        )
        after_one = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        many = measure.timed(
            lambda: loraport.transfer_many(pair.loras, output=output, options=options("second"), **models)
        )
    after_many = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    same = (output / pair.loras[0].name).read_bytes() == (output / "alone.safetensors").read_bytes()
    shutil.rmtree(args.work)
    print(f"{args.method}, {args.size} shapes, {args.blocks} blocks, cache {args.cache}")
    print(
        f"  one LoRA      {one[0]:8.2f} s of the processor, {one[1]:8.2f} s by the clock, peak {after_one / 1e6:.2f} GB"
    )
    print(f"  {args.loras:>3} LoRAs     {many[0]:8.2f} s of the processor, {many[1]:8.2f} s by the clock, ", end="")
    print(f"peak {after_many / 1e6:.2f} GB")
    print(f"  ratio         {many[0] / one[0]:8.2f}; the first one is the same file: {same}")
    print(f"  other programs took {others.share:.0%} of the cores")


if __name__ == "__main__":
    main()
