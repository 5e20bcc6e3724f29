"""Everything about a card in one run: does it work, is it right, how fast, how busy, in how much memory.

    python benchmarks/gpu.py                         within nine minutes; several cards are used if there are
    python benchmarks/gpu.py --parts correct speed
    python benchmarks/gpu.py --tiny --device cpu     tries the whole script anywhere

On a bare machine with PyTorch and no network: copy `src`, `benchmarks` and the wheels of pyproject.toml's dependencies
and of scipy, but torch (`pip download` beforehand), `python -m pip install --no-index --no-deps --target site *.whl`,
and `PYTHONPATH=src:site python benchmarks/gpu.py`.

Ends with what was found against the targets of docs/benchmarks.md, what was not checked and why; all figures are in
--out, also if the run is cut off. Exit code 1 if a check failed; a target that is missed is no failure.
"""

import argparse
import faulthandler
import platform
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch

import gpu_correct
import gpu_speed
import gpu_variants
import gpu_where
from gpu_session import Session
from gpu_targets import verdict

PARTS = {
    "env": gpu_speed.env,
    "eigen": gpu_speed.eigen,
    "correct": gpu_correct.correct,
    "speed": gpu_speed.speed,
    "where": gpu_where.where,
    "memory": gpu_speed.memory,
    "dense": gpu_speed.dense,
    "variants": gpu_variants.variants,
}
"""By importance: what comes last is left out where the budget ends."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--budget", type=float, default=540.0, help="seconds; steps that would not fit are left out")
    parser.add_argument("--blocks", type=int, default=2, help="of the pair of 14B shapes")
    parser.add_argument("--tiny", action="store_true", help="models of a few kilobytes, to try the script")
    parser.add_argument("--work", type=Path, help="for models, 5 GB; by default in memory where there is room")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--traces", type=Path, help="folder for what the profiler saw of a few layers, some MB each")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("not checked: PyTorch sees no CUDA device here")
        return 0
    faulthandler.dump_traceback_later(args.budget + 60, exit=True)  # a call that never returns
    warnings.filterwarnings("ignore", message=".*[Pp]rofiler.*")
    work = Path(tempfile.mkdtemp(prefix="gpu-", dir=args.work or _roomy()))
    if args.traces is not None:
        args.traces.mkdir(parents=True, exist_ok=True)
    session = Session(
        args.device,
        tiny=args.tiny,
        budget=args.budget,
        out=args.out,
        work=work,
        blocks=1 if args.tiny else args.blocks,
        traces=args.traces,
    )
    try:
        session.keep("machine", _machine(args.device))
        session.say("  ".join(f"{name} {value}" for name, value in session.figures["machine"].items()))
        for part in args.parts:
            session.say(f"\n{part}")
            PARTS[part](session)
            session.keep("verdict", verdict(session))  # of what is there, should this be cut off
    finally:
        shutil.rmtree(work, ignore_errors=True)
        faulthandler.cancel_dump_traceback_later()
    for part in PARTS.keys() - set(args.parts):
        session.leave_out(part, "--parts")
    print("\n" + verdict(session))
    print("\nNot checked:")
    print("\n".join(f"- {line}" for line in [*session.not_checked, "MPS: there is no such part"]))
    if session.failed:
        print("\nFAILED: " + ", ".join(session.failed))
    print(f"\nall figures: {args.out}")
    return 1 if session.failed else 0


def _machine(device: str) -> dict[str, object]:
    found: dict[str, object] = {"torch": torch.__version__, "python": platform.python_version()}
    found |= {"threads": torch.get_num_threads(), "TF32": torch.backends.cuda.matmul.allow_tf32}
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "memory_gb": round(card.total_memory / 1e9, 1), "cards": torch.cuda.device_count()}
        found["cuda"] = torch.version.cuda
    return found


def _roomy() -> str | None:
    """Memory as a folder, where there are 16 GB free; else the system's place for temporary files."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 16e9 else None


if __name__ == "__main__":
    sys.exit(main())
