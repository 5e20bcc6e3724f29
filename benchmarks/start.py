"""How long commands take until they answer, refuse, or begin: the start of the program on the bundled models.

    python benchmarks/start.py
    python benchmarks/start.py --other ../before/src --rounds 10

Every command is a process of its own, in turns, so that what else the machine does meets all of them. What counts is
the time of the processor, least of the rounds; by the clock it is the same on an idle machine, but for the first line
on a terminal, which is only given by the clock. Python's compiled files are there.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

PAIR = "--source zoo:source --target zoo:dmd"
COMMANDS = {
    "`import torch` alone": None,
    "--version": "--version",
    "--help": "--help",
    "transfer --help": "transfer --help",
    "methods": "methods",
    "cache ls": "cache ls",
    "inspect a LoRA": "inspect zoo:outline",
    "plan": f"plan zoo:outline {PAIR} --device cpu",
    "plan, `matched-gain`": f"plan zoo:outline {PAIR} --device cpu --method matched-gain",
    "check, another width": f"check {{lora}} {PAIR}",
    "transfer, no such file": f"transfer no.safetensors {PAIR} -o {{out}}",
    "transfer, no such method": f"transfer zoo:outline {PAIR} --method cassa -o {{out}}",
    "convert, no such file": "convert no.safetensors -o {out}",
    "merge, another model": "merge {lora} --into zoo:source -o {out}",
    "calibrate, no such file": f"calibrate no.safetensors {PAIR} -o {{out}}",
    "evaluate, no such target": "evaluate --target no",
    "transfer, all layers kept": f"transfer zoo:outline {PAIR} -o {{out}} --overwrite --device cpu",
}
FIRST_LINES = {"reading headers": b"reading headers", "the plan": b"loading PyTorch", "the end": b"\x00"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other", type=Path, help="the folder of another version of the package, measured in turns")
    args = parser.parse_args()
    own = Path(__file__).parents[1] / "src"
    trees = {"this": own} if args.other is None else {"other": args.other.resolve(), "this": own}
    with tempfile.TemporaryDirectory(prefix="start-") as folder, measure.Others() as others:
        work = Path(folder)
        lora = _strange_lora(work)
        seconds = {
            name: _least(trees, words, args.rounds, work, lora) for name, words in COMMANDS.items()
        }  # fmt: skip
        lines = _on_a_terminal(work, args.rounds)
    print(f"| command | {' | '.join(trees)} |\n|---|{'---:|' * len(trees)}")
    for name, found in seconds.items():
        print(f"| {name} | {' | '.join(f'{found[tree]:.2f}' for tree in trees)} |")
    print("\nOn a terminal, seconds by the clock: " + ", ".join(f"{name} {at:.2f}" for name, at in lines.items()))
    print(f"Other programs took {others.share:.0%} of the cores meanwhile.")


def _strange_lora(work: Path) -> Path:
    """A LoRA of Wan of another width than the bundled models."""
    import torch
    from safetensors.torch import save_file

    keys = [f"diffusion_model.blocks.0.self_attn.{name}.lora" for name in "qkvo"]
    factors = {f"{key}_A.weight": torch.ones(4, 64) for key in keys} | {
        f"{key}_B.weight": torch.ones(64, 4) for key in keys
    }
    save_file(factors, work / "strange.safetensors")
    return work / "strange.safetensors"


def _least(trees: dict[str, Path], words: str | None, rounds: int, work: Path, lora: Path) -> dict[str, float]:
    """Least seconds of the processor of a command, by version of the package."""
    least = dict.fromkeys(trees, float("inf"))
    for number in range(rounds + 1):  # the first fills caches, and is not counted
        for name, tree in trees.items():
            given = [] if words is None else shlex.split(words.format(lora=lora, out=work / f"{name}.safetensors"))
            code = ["-c", "import torch"] if words is None else ["-m", "loraport", *given]
            before = os.times()
            subprocess.run([sys.executable, *code], env=_variables(tree, work / name), capture_output=True, check=False)
            after = os.times()
            spent = after.children_user + after.children_system - before.children_user - before.children_system
            if number:
                least[name] = min(least[name], spent)
    return least


def _on_a_terminal(work: Path, rounds: int) -> dict[str, float]:
    """When a transfer of which all layers are kept shows what, and ends; least seconds by the clock."""
    words = shlex.split(COMMANDS["transfer, all layers kept"].format(out=work / "shown.safetensors", lora=""))
    least = dict.fromkeys(FIRST_LINES, float("inf"))
    own = Path(__file__).parents[1] / "src"
    for _ in range(rounds + 1):
        ours, theirs = os.openpty()
        began = time.perf_counter()
        command = [sys.executable, "-m", "loraport", *words]
        with subprocess.Popen(command, env=_variables(own, work / "this"), stdout=subprocess.DEVNULL, stderr=theirs):
            os.close(theirs)
            shown, waiting = b"", dict(FIRST_LINES)
            while waiting:
                try:
                    shown += os.read(ours, 65536) or b"\x00"
                except OSError:  # how Linux says that nobody writes there any more
                    shown += b"\x00"
                for name in [name for name, text in waiting.items() if text in shown]:
                    least[name] = min(least[name], time.perf_counter() - began)
                    del waiting[name]
            os.close(ours)
    return least


def _variables(tree: Path, cache: Path) -> dict[str, str]:
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**rest, "PYTHONPATH": str(tree), "LORAPORT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
