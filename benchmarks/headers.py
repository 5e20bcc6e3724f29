"""How long the commands take that read headers: `inspect`, `plan`, `verify` on models of real size that hold nothing.

    python benchmarks/headers.py
    python benchmarks/headers.py --models wan2.2-14b --profile

The models are diffusers' own classes at their published sizes, made without memory; a file is the header and a hole as
long as the data, which costs no room on the disk. A LoRA of rank 32 on every linear layer of the blocks goes with each,
with random factors, since `inspect` and `verify` look at them. Every command is a process of its own, so the start of
Python, and of torch where the command loads it, is in the seconds; both are also given alone. Everything runs on one
core. Seconds of the processor are those of the command, which other programs disturb less than the clock.
"""

import argparse
import cProfile
import json
import os
import pstats
import re
import resource
import shutil
import struct
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

import measure

RANK = 32
MODELS = {
    "wan2.2-14b": ("WanTransformer3DModel", {}),
    "qwen-image-20b": ("QwenImageTransformer2DModel", {}),
    "ltx-2.3-22b": (
        "LTX2VideoTransformer3DModel",
        {"gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True},
    ),
    "krea-2-13b": ("Krea2Transformer2DModel", {}),
}
"""Name -> class of diffusers and what is not its default."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--work", type=Path, help="where the files lie or will be written; kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where the time of `plan` goes, in this process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="headers-"))
    try:
        for name in args.models:
            write(work, name)
        if args.profile:
            for name in args.models:
                _profile(work, name)
            return
        os.environ["LORAPORT_CACHE"] = str(work / "cache")  # the rates of the machine are measured once
        with measure.Others() as others:
            start, torch_start = _seconds(["--version"], args.rounds), _seconds(None, args.rounds)
            rows = [row for name in args.models for row in _measured(work, name, args.rounds)]
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(
        f"start of the program {start[0]:.2f} s, torch alone {torch_start[0]:.2f} s ({torch_start[1]:.2f} of processor)"
    )
    print(
        "| model | parameters | tensors | command | seconds | of processor | peak |\n|---|---:|---:|---|---:|---:|---:|"
    )
    line = "| {model} | {billions:.1f} B | {tensors} | {command} | {seconds:.2f} | {processor:.2f} | {peak:.2f} GB |"
    print("\n".join(line.format(**row) for row in rows))
    print(f"\nOther programs took {others.share:.0%} of the cores meanwhile.")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """Every parameter of a model with its shape, without any memory for it."""
    import diffusers

    kind, settings = MODELS[name]
    with torch.device("meta"):
        network = getattr(diffusers, kind)(**settings)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def write(work: Path, name: str) -> None:
    """A source, a target and a LoRA of a model, unless they are there."""
    if (work / f"{name}-lora.safetensors").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    shapes = shapes_of(name)
    for role in ("source", "target"):
        write_hole(work / f"{name}-{role}.safetensors", shapes)
    generator = torch.Generator().manual_seed(1)
    factors = {}
    for key, shape in shapes.items():
        if key.endswith(".weight") and len(shape) == 2 and re.search(r"\.\d+\.", key) and min(shape) > RANK:
            stem = f"transformer.{key.removesuffix('.weight')}"
            for part, size in (("lora_A", (RANK, shape[1])), ("lora_B", (shape[0], RANK))):
                factors[f"{stem}.{part}.weight"] = torch.randn(size, generator=generator).bfloat16()
    save_file(factors, work / f"{name}-lora.safetensors")


def write_hole(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file in bfloat16 whose data are a hole: zeros that take no room."""
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + torch.bfloat16.itemsize * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def _measured(work: Path, name: str, rounds: int) -> list[dict]:
    source, target, lora = (str(work / f"{name}-{role}.safetensors") for role in ("source", "target", "lora"))
    pair = [lora, "--source", source, "--target", target]
    commands = {
        "inspect (model)": ["inspect", source],
        "inspect (LoRA)": ["inspect", lora],
        "plan": ["plan", *pair],
        "plan (direct)": ["plan", *pair, "--method", "direct"],
        "verify": ["verify", lora, "--no-load", "--model", source],
    }
    shapes = shapes_of(name)
    count = sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e9
    rows = []
    for title, words in commands.items():
        seconds, processor, peak = _seconds(words, rounds)
        facts = {"model": name, "billions": count, "tensors": len(shapes), "command": title}
        rows.append({**facts, "seconds": seconds, "processor": processor, "peak": peak / 1e9})
    return rows


def _seconds(words: list[str] | None, rounds: int) -> tuple[float, float, int]:
    """Least wall and processor time and largest peak of memory of a command; None for loading torch alone."""
    walls, processor, peaks = [], [], []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        asked = ["-c", "import torch"] if words is None else ["-m", "loraport", *words]
        done = measure.run([sys.executable, *asked], cores=1)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(done.wall)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        peaks.append(done.peak)
    return min(walls), min(processor), max(peaks)


def _profile(work: Path, name: str) -> None:
    from loraport.engine.plan import make_plan
    from loraport.engine.recipe import Recipe

    source, target, lora = (str(work / f"{name}-{role}.safetensors") for role in ("source", "target", "lora"))
    watch = cProfile.Profile()
    watch.runcall(make_plan, Recipe(lora=lora, source=source, target=target))
    print(name)
    pstats.Stats(watch).sort_stats("cumulative").print_stats(35)


if __name__ == "__main__":
    main()
