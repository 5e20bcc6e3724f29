"""Store what the source does on its way from noise to clip: the data of every distillation.

Each trajectory is one Euler solve of 12 steps with guidance 2, on seen prompts; the states at the corners of the
students' steps are kept, in half precision.
"""

import os
import time

import torch
from common import STEPS, arguments, begin, draw, load_model, prompt_pool, seeded, solve
from safetensors.torch import save_file

from loraport.zoo import world


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--chunks", type=int, help="other than the size's own")
    parser.add_argument("--chunk", type=int, default=256, help="trajectories in each")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=100)
    options = begin(parser)
    size = options.size
    folder = options.out / "trajectories"
    folder.mkdir(parents=True, exist_ok=True)
    pid = options.out / "trajectories.pid"
    pid.write_text(str(os.getpid()))
    model, pool = load_model(options.out / "final" / "models" / "source", size).eval(), prompt_pool(held_out=False)
    batch = size.plans["source"].batch
    started = time.monotonic()
    for chunk in range(options.chunks or size.chunks):
        path = folder / f"{chunk:03}.safetensors"
        if path.exists():
            continue
        generator = seeded(options.seed + chunk)
        prompts = draw(pool, options.chunk, generator)
        noise = torch.randn(options.chunk, world.CHANNELS, *size.clip.shape, generator=generator)
        states = solve(model, prompts, noise, steps=12, guidance=options.guidance, every=12 // STEPS, batch=batch)
        partial = path.with_suffix(".partial")
        save_file({"prompts": prompts, "states": states.half().contiguous()}, partial)
        partial.replace(path)
        print(f"chunk {chunk} {time.monotonic() - started:.0f}s", flush=True)
    pid.unlink()


if __name__ == "__main__":
    main()
