"""Does a transfer work on a GPU: fresh processes, equal bytes, agreement with the CPU, the driver that is named.

    python benchmarks/gpu_checks.py                 on one card
    python benchmarks/gpu_checks.py --device cpu    tries the script itself

Prints a line a check, and what it could not check; ends with 1 if a check failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import synthetic

FRESH = 5  # processes that make their first decomposition from several threads at once: two of three once crashed
NEAR = 1e-5  # of the update, between devices, for methods without decisions


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="1.3B", choices=synthetic.SIZES)
    parser.add_argument("--blocks", type=int, default=1)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("not checked: PyTorch sees no CUDA device here")
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-checks-") as folder:
        work = Path(folder)
        made = [sys.executable, str(Path(synthetic.__file__)), str(work), "--size", args.size]
        subprocess.run([*made, "--blocks", str(args.blocks)], check=True, capture_output=True)
        results = list(_checks(work, args.device))
    print("not checked: memory that runs out on the device, several devices, MPS")
    return 0 if all(results) else 1


def _checks(work: Path, device: str):
    def told(what: str, passed: bool, found: str = "") -> bool:
        print(f"{'ok    ' if passed else 'FAILED'}  {what}{f': {found}' if found else ''}", flush=True)
        return passed

    runs = [_transfer(work, f"fresh-{n}", device) for n in range(FRESH)]
    ended = [run.returncode for run in runs]
    said = next((run.stderr.strip().splitlines()[-1] for run in runs if run.returncode and run.stderr.strip()), "")
    yield told(f"{FRESH} fresh processes with the default number of workers", not any(ended), said)
    if any(ended):
        return
    files = [(work / f"fresh-{n}.safetensors").read_bytes() for n in range(FRESH)]
    yield told("equal bytes from all of them", len(set(files)) == 1)
    one = _transfer(work, "one", device, "--workers", "1")
    same = one.returncode == 0 and (work / "one.safetensors").read_bytes() == files[0]
    yield told("equal bytes with one worker", same, "" if same else one.stderr.strip()[-200:])
    report = json.loads(runs[0].stdout)
    drivers = sorted({str(layer["stats"].get("svd_driver")) for layer in report["layers"]})
    known = not device.startswith("cuda") or not any(name.startswith("gesdd") for name in drivers)
    yield told("the driver is one of the device", known, ", ".join(drivers))
    where = sorted({str(layer["device"]) for layer in report["layers"]})
    yield told("every layer was computed there", all(name.startswith(device) for name in where), ", ".join(where))
    for method in ("direct", "matched-gain", "uniform-shrink"):
        settings = ("--method", method, "--dtype", "float32")
        pair = [_transfer(work, f"{method}-{name}", at, *settings) for name, at in (("here", device), ("cpu", "cpu"))]
        if any(run.returncode for run in pair):
            yield told(f"{method} as on the CPU", False, "".join(run.stderr for run in pair).strip()[-200:])
            continue
        error = _apart(work / f"{method}-here.safetensors", work / f"{method}-cpu.safetensors")
        yield told(f"{method} as on the CPU", error < NEAR, f"{error:.1e} of the update")


def _transfer(work: Path, name: str, device: str, *more: str) -> subprocess.CompletedProcess[str]:
    models = ["--source", str(work / "source.safetensors"), "--target", str(work / "target.safetensors")]
    options = ["-o", str(work / f"{name}.safetensors"), "--device", device, "--cache", "off", "--log", "off", "--json"]
    command = [sys.executable, "-m", "loraport", "transfer", str(work / "lora-1.safetensors"), *models, *options, *more]
    return subprocess.run(command, capture_output=True, text=True)


def _apart(one: Path, other: Path) -> float:
    """The largest relative difference of a layer's update."""
    a, b = load_file(one), load_file(other)
    worst = 0.0
    for key in a:
        if key.endswith("lora_B.weight"):
            down = key.replace("lora_B", "lora_A")
            first, second = a[key] @ a[down], b[key] @ b[down]
            worst = max(worst, float((first - second).norm() / second.norm()))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
