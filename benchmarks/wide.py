"""Peak memory of `transfer` on the widest layers of models of real size.

    python benchmarks/wide.py
    python benchmarks/wide.py --models qwen-image-20b --methods direct

The models are those of `headers.py`: real headers over a hole. The weights of a few layers are filled with random
numbers in source and target, and the LoRA is on these layers alone, so that a run takes minutes and its peak is that of
the whole model, but for the output itself: memory follows the largest layers in work, not their number.
"""

import argparse
import json
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import headers
import measure

LAYERS = {
    "wan2.2-14b": ("blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj", "blocks.1.ffn.net.2"),
    "qwen-image-20b": ("transformer_blocks.0.img_mod.1", "transformer_blocks.0.img_mlp.net.2"),
    "ltx-2.3-22b": ("transformer_blocks.0.ff.net.0.proj", "transformer_blocks.1.ff.net.2"),
}
"""Model -> layers that are real; the widest of the blocks among them."""
DRIFT = 0.05


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--methods", nargs="+", default=["direct", "casa"])
    parser.add_argument("--work", type=Path, help="where the files lie or will be written; kept")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="wide-"))
    try:
        with measure.Others() as others:
            rows = [row for name in args.models for row in _rows(work, name, args.methods)]
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print("| model | widest layer | method | seconds | predicted peak | peak |\n|---|---|---|---:|---:|---:|")
    print("\n".join(rows))
    print(f"\nOther programs took {others.share:.0%} of the cores meanwhile.")


def _rows(work: Path, name: str, methods: list[str]) -> list[str]:
    files = write(work, name)
    shapes = headers.shapes_of(name)
    widest = max((shapes[f"{layer}.weight"] for layer in LAYERS[name]), key=lambda shape: shape[0] * shape[1])
    rows = []
    for method in methods:
        words = [str(files["lora"]), "--source", str(files["source"]), "--target", str(files["target"])]
        words += ["--method", method, "--cache", "off"]
        plan = measure.run([sys.executable, "-m", "loraport", "plan", *words, "--json"])
        predicted = json.loads(plan.stdout)["cost"]["peak_bytes"] / 1e9
        output = work / f"{name}-out.safetensors"
        done = measure.run([sys.executable, "-m", "loraport", "transfer", *words, "-o", str(output), "--overwrite"])
        size = f"{widest[0]} x {widest[1]}"
        rows.append(f"| {name} | {size} | {method} | {done.wall:.0f} | {predicted:.2f} GB | {done.peak / 1e9:.2f} GB |")
        print(rows[-1], file=sys.stderr)
    return rows


def write(work: Path, name: str) -> dict[str, Path]:
    """Source, target and LoRA of a model; its real layers are filled."""
    files = {role: work / f"{name}-wide-{role}.safetensors" for role in ("source", "target", "lora")}
    if files["lora"].exists():
        return files
    work.mkdir(parents=True, exist_ok=True)
    shapes = headers.shapes_of(name)
    generator = torch.Generator().manual_seed(1)
    factors = {}
    for role in ("source", "target"):
        headers.write_hole(files[role], shapes)
    for layer in LAYERS[name]:
        rows, columns = shapes[f"{layer}.weight"]
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        fill(files["source"], f"{layer}.weight", weight)
        weight += DRIFT * torch.randn(rows, columns, generator=generator) / columns**0.5
        fill(files["target"], f"{layer}.weight", weight)
        for part, size in (("lora_A", (headers.RANK, columns)), ("lora_B", (rows, headers.RANK))):
            factors[f"transformer.{layer}.{part}.weight"] = torch.randn(size, generator=generator).bfloat16() * 0.01
    save_file(factors, files["lora"])
    return files


def fill(path: Path, key: str, weight: torch.Tensor) -> None:
    """Put a weight into its place in a file of `headers.write_hole`."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        begin, _ = json.loads(file.read(length))[key]["data_offsets"]
        file.seek(8 + length + begin)
        file.write(weight.bfloat16().view(torch.uint8).numpy().tobytes())


if __name__ == "__main__":
    main()
