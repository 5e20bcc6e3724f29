"""Store what the source does on its way from noise to clip: the data of every distillation.

Each trajectory is one Euler solve of 12 steps with guidance 2, on seen prompts; the states at the corners of the
students' steps are kept, in half precision.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from common import STEPS, draw, load_model, prompt_pool, solve
from safetensors.torch import save_file

from loraport.zoo import world

CHUNK = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=12, help=f"of {CHUNK} trajectories")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.out / "trajectories"
    folder.mkdir(parents=True, exist_ok=True)
    pid = options.out / "trajectories.pid"
    pid.write_text(str(os.getpid()))
    model, pool = load_model(options.out / "final" / "models" / "source").eval(), prompt_pool(held_out=False)
    started = time.monotonic()
    for chunk in range(options.chunks):
        path = folder / f"{chunk:03}.safetensors"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(options.seed + chunk)
        prompts = draw(pool, CHUNK, generator)
        noise = torch.randn(CHUNK, world.CHANNELS, world.FRAMES, world.SIZE, world.SIZE, generator=generator)
        states = solve(model, prompts, noise, steps=12, guidance=options.guidance, every=12 // STEPS)
        partial = path.with_suffix(".partial")
        save_file({"prompts": prompts, "states": states.half().contiguous()}, partial)
        partial.replace(path)
        print(f"chunk {chunk} {time.monotonic() - started:.0f}s", flush=True)
    pid.unlink()


if __name__ == "__main__":
    main()
