"""How long `loraport check` takes: a refusal by headers, and a verdict by a sample of layers, on shapes of a size.

    python benchmarks/check.py
    python benchmarks/check.py --size 1.3B --blocks 30 --work /data/bench

A sample is at most 24 layers however many there are, so that a few blocks are enough. Every command is a process of its
own on two cores; the start of Python, and of torch where it is loaded, is in the seconds.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import measure
import synthetic

RUN = "import sys, time; from loraport.cli.main import app; app(sys.argv[1:])"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=synthetic.SIZES, default="1.3B")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where the files lie or will be written; kept")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="check-"))
    try:
        pair = synthetic.write_pair(work, args.size, args.blocks)
        other = work / "other-width.safetensors"
        if not other.exists():
            narrow(pair.loras[0], other)
        models = ["--source", str(pair.source), "--target", str(pair.target), "--device", "cpu", "--json"]
        with measure.Others() as others:
            rows = {
                "refused by headers (a LoRA of another width)": timed(["check", str(other), *models], args.rounds),
                "a sample of layers": timed(["check", str(pair.loras[0]), *models], args.rounds),
                "two LoRAs at once": timed(["check", *map(str, pair.loras[:2]), *models], args.rounds),
            }
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print("| what | seconds | of the processor | looked at | decomposed | verdict |\n|---|---:|---:|---:|---:|---|")
    for title, (wall, processor, facts) in rows.items():
        decomposed = sum("head_lora" in layer["figures"] for layer in facts["layers"])
        print(
            f"| {title} | {wall:.2f} | {processor:.2f} | {len(facts['layers'])} | {decomposed} | {facts['verdict']} |"
        )
    print(f"\nOther programs took {others.share:.0%} of the cores meanwhile.")


def narrow(lora: Path, output: Path) -> None:
    """A LoRA of half the width: zeros, since headers are all that is read."""
    from safetensors import safe_open

    with safe_open(lora, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - it is no mapping
    half = {
        key: torch.zeros(*(side // 2 if side > 256 else side for side in shape), dtype=torch.bfloat16)
        for key, shape in shapes.items()
    }
    save_file(half, output)


def timed(words: list[str], rounds: int) -> tuple[float, float, dict]:
    """Least seconds by the clock and of the processor, and what the command said of the first LoRA."""
    walls, processor = [], []
    for _ in range(rounds):
        before, began = os.times(), os.times().elapsed
        done = subprocess.run(
            [sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False,
            env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2"),
        )  # fmt: skip
        after = os.times()
        if not done.stdout:
            raise RuntimeError(done.stderr)
        walls.append(after.elapsed - began)
        processor.append(after.children_user + after.children_system - before.children_user - before.children_system)
        facts = json.loads(done.stdout)
    return min(walls), min(processor), facts["checks"][0] if "checks" in facts else facts


if __name__ == "__main__":
    main()
