"""Train and measure a whole family: every script in order, each in a process of its own.

What is finished is noted in ``OUT/family.jsonl``, with its time, and not done again; what was interrupted goes on where
it was. ``--quick`` only runs two steps of everything, to see whether a machine can.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from common import arguments

ORDER = (
    ("train_source.py",),
    ("train_classifier.py",),
    ("make_trajectories.py",),
    ("distill.py", "step"),
    ("distill.py", "causal-init"),
    ("match_distribution.py", "dmd"),
    ("match_distribution.py", "self-forcing"),
    ("match_distribution.py", "distill-lora"),
    ("match_distribution.py", "few-step"),
    ("train_guidance.py",),
    ("train_lora.py", "noir"),
    ("train_lora.py", "outline"),
    ("train_lora.py", "stripe"),
    ("train_lora.py", "ring"),
    ("train_lora.py", "zigzag"),
    ("match_distribution.py", "dmd", "--name", "dmd-2", "--seed", "141"),
    ("train_lora.py", "outline", "--name", "outline-2", "--seed", "132"),
    ("train_lora.py", "zigzag", "--name", "zigzag-2", "--seed", "135"),
    ("measure.py",),
)
QUICK = {"make_trajectories.py": ("--chunks", "1", "--chunk", "4"), "measure.py": ("--count", "4")}
QUICK_TRAINING = ("--steps", "2", "--batch", "2")


def commands(size: str, quick: bool = False, compiled: bool = False) -> list[tuple[str, ...]]:
    """Script and options of each step, apart from where it runs."""
    made = []
    for script, *rest in ORDER:
        fast = QUICK.get(script, QUICK_TRAINING) if quick else ()
        compile_ = ("--compile",) if compiled and script == "train_source.py" else ()
        made.append((script, *rest, "--size", size, *fast, *compile_))
    return made


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two steps of everything; use a folder of its own")
    parser.add_argument("--compile", action="store_true", help="compile the source's blocks")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    notes = options.out / "family.jsonl"
    done = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    where = ["--out", str(options.out), "--threads", str(options.threads)]
    where += ["--device", options.device] if options.device else []
    for script, *rest in commands(options.size, options.quick, options.compile):
        command = " ".join([script, *rest])
        if any(note["command"] == command for note in done):
            continue
        print(f"== {command}", flush=True)
        started = time.monotonic()
        status = subprocess.run([sys.executable, str(Path(__file__).parent / script), *rest, *where]).returncode
        if status:
            sys.exit(f"{command} ended with status {status}; the same command again goes on from here")
        done.append({"command": command, "seconds": round(time.monotonic() - started, 1)})
        with notes.open("a") as stream:
            stream.write(json.dumps(done[-1]) + "\n")
        print(f"== {command}: {done[-1]['seconds']} s", flush=True)
    for note in done:
        print(f"{note['seconds']:8.1f} s  {note['command']}")
    print(f"{sum(note['seconds'] for note in done):8.1f} s")


if __name__ == "__main__":
    main()
