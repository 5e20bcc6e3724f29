"""Three LoRAs with three settings as one sweep, against nine transfers: processor time of calls in one process.

    python benchmarks/sweep.py                       a block of 1.3B shapes, casa at ranks 16 and 32 and amount 0.5
    python benchmarks/sweep.py --axis q_dom --cache off

Processor time (all threads) is what is compared, so that it can be run on a machine that is not idle; what other
programs took is printed too. Writing the models, importing and one tiny decomposition come before the clock starts.
The nine transfers share a cache, as those of a user do, unless there is none.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

import loraport
import measure
from synthetic import SIZES, write_pair

HERE = Path(__file__).parent
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "rank": [{"rank": 16}, {"rank": 32}, {"rank": 32, "amount": 0.5}],
    "q_dom": [{"rank": 32, "params": {"q_dom": value}} for value in (0.4, 0.5, 0.6)],
    "method": [{"rank": 32, "method": name} for name in ("direct", "matched-gain", "casa")],
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--axis", choices=SETTINGS, default="rank", help="what the three settings differ in")
    parser.add_argument("--cache", choices=("cold", "off"), default="cold", help="an empty cache, or none at all")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "sweep", help="scratch folder, emptied")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    pair = write_pair(args.work / "models", args.size, args.blocks, loras=3)
    torch.linalg.svd(torch.eye(8) @ torch.eye(8))  # the libraries' own start is not part of the work
    settings = SETTINGS[args.axis]

    def options(name: str) -> loraport.RunOptions:
        cache = "off" if args.cache == "off" else str(args.work / name)
        return loraport.RunOptions(device="cpu", cache=cache, log="off")

    def alone() -> None:
        for lora in pair.loras:
            for number, one in enumerate(settings):
                output = args.work / f"{lora.stem}-{number}.safetensors"
                loraport.transfer(
                    lora, source=pair.source, target=pair.target, output=output, options=options("first"), **one
                )

    swept: list[loraport.SweepReport] = []

    def together() -> None:
        grid = {"source": pair.source, "target": pair.target, "settings": settings}
        swept.append(loraport.sweep(pair.loras, grid, output=args.work / "made", options=options("second")))

    with measure.Others() as others:
        nine, one = measure.timed(alone), measure.timed(together)
    rows = swept[0].cells
    same = all(
        (args.work / "made" / row.output).read_bytes()
        == (args.work / f"{Path(row.lora).stem}-{at % 3}.safetensors").read_bytes()
        for at, row in enumerate(rows)
    )
    shutil.rmtree(args.work)
    print(f"three settings ({args.axis}) x three LoRAs, {args.size} shapes, {args.blocks} block(s), cache {args.cache}")
    print(f"  nine transfers  {nine[0]:8.2f} s of the processor, {nine[1]:8.2f} s by the clock")
    print(f"  one sweep       {one[0]:8.2f} s of the processor, {one[1]:8.2f} s by the clock")
    print(f"  ratio           {nine[0] / one[0]:8.2f}; the files are the same: {same}")
    print(f"  other programs took {others.share:.0%} of the cores")


if __name__ == "__main__":
    main()
