"""The matrix products that no transfer can do without: U^T D V of every layer of a block, thin, float32.

    python benchmarks/products.py --size 1.3B

Nothing else is timed: the operands lie in memory. The layers are done in two ways, side by side with one
thread each and one after the other with all threads; the faster one counts. Prints one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from synthetic import SIZES, linears, seeded


def operands(m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (m x p), D (m x n), V (n x p) of a layer; what is in them does not matter."""
    p = min(m, n)
    generator = seeded(m, n)
    return tuple(torch.randn(a, b, generator=generator) for a, b in ((m, p), (m, n), (n, p)))


def route(U: Tensor, D: Tensor, V: Tensor) -> Tensor:
    """U^T D V by the cheaper order."""
    return (U.T @ D) @ V if D.shape[0] >= D.shape[1] else U.T @ (D @ V)


def _seconds(work: Callable[[], object], repeat: int, clock: Callable[[], float]) -> list[float]:
    found = []
    for _ in range(repeat + 1):
        began = clock()
        work()
        found.append(clock() - began)
    return found[1:]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the processor, all threads")
    args = parser.parse_args()
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    shapes = list(linears(SIZES[args.size]).values())
    made = {shape: operands(*shape) for shape in set(shapes)}
    together = [made[shape] for shape in sorted(shapes, key=lambda shape: -shape[0] * shape[1])]

    torch.set_num_threads(args.cores)
    one_by_one = _seconds(lambda: [route(*layer) for layer in together], args.repeat, clock)
    alone = {shape: _seconds(partial(route, *layer), args.repeat, clock) for shape, layer in made.items()}
    by_shape = {f"{m}x{n}": statistics.median(seconds) for (m, n), seconds in alone.items()}
    torch.set_num_threads(1)
    with ThreadPoolExecutor(args.cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        side_by_side = _seconds(lambda: list(pool.map(lambda layer: route(*layer), together)), args.repeat, clock)
    ways = {"one_by_one": statistics.median(one_by_one), "side_by_side": statistics.median(side_by_side)}
    print(json.dumps({"seconds": min(ways.values()), "ways": ways, "by_shape": by_shape}))


if __name__ == "__main__":
    main()
