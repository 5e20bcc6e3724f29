"""Time one layer of Wan's shapes on one thread, against the matrix products nobody can avoid.

    python benchmarks/bench_layer.py                      # Wan2.1-1.3B shapes, rank 32
    python benchmarks/bench_layer.py --shapes 5120x5120 13824x5120 --rank 64

Columns, in seconds (best of --repeat):
  gemm     U^T D and (U^T D) V, the two routing products
  svd      the thin SVD of the source weight, once per source
  routing  `prepare`: the two products, and for rectangular layers one Gram matrix, once per pair
  update   `transfer` and `truncated_svd` with the routing at hand: what each further LoRA costs
  ratio    (routing + update) / gemm: a LoRA whose routing is not kept
  kept     update / gemm: a LoRA whose routing is kept
  peak     resident memory at the end, MB
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.core.truncation import truncated_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs

WAN_SHAPES = ["1536x1536", "8960x1536", "1536x8960"]


def wan_spectrum(p: int) -> Tensor:
    """Singular values like those of Wan2.1-1.3B's attention weights: 8 to 2 over the first 50, then down to 0.07."""
    knots = torch.tensor([0, 10, 50, 400, 450, 1400, 1536]) / 1536 * p
    values = torch.tensor([8.0, 4.0, 2.0, 1.56, 1.48, 0.11, 0.07])
    at = torch.arange(p, dtype=torch.float32)
    right = torch.searchsorted(knots, at, right=True).clamp(max=len(knots) - 1)
    share = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
    return torch.lerp(values[right - 1], values[right], share)


def make_layer(m: int, n: int, rank: int, seed: int, drift: float = 0.03) -> tuple[Tensor, Tensor, LowRank]:
    """A weight with that spectrum, a drift of 3 % heavier in the head, and an update of 1 %."""
    g = torch.Generator().manual_seed(seed)

    def random(a: int, b: int) -> Tensor:
        return torch.randn(a, b, generator=g)

    p = min(m, n)
    S = wan_spectrum(p)
    U, V = torch.linalg.qr(random(m, p)).Q, torch.linalg.qr(random(n, p)).Q
    W = (U * S) @ V.T
    D = random(m, n) + (U[:, :64] * 40) @ random(64, n) / n**0.5 + random(m, 64) @ (V[:, :64] * 40).T / m**0.5
    D *= drift * float(W.norm() / D.norm())
    B, A = random(m, rank) * torch.logspace(0, -1, rank), random(rank, n)
    update = LowRank(B, A)
    return W, D, update.scaled(0.01 * float(W.norm()) / update.norm())


def measure(shape: str, rank: int, repeat: int, clock: Callable[[], float]) -> dict[str, float | str]:
    m, n = (int(part) for part in shape.split("x"))
    W, D, update = make_layer(m, n, rank, seed=0)

    def best(repeat: int, function, *args):
        seconds, result = float("inf"), None
        for _ in range(repeat):
            began = clock()
            result = function(*args)
            seconds = min(seconds, clock() - began)
        return seconds, result

    svd_seconds, svd = best(1, thin_svd, W)
    basis = SpectralBasis(svd.U, svd.S, svd.Vh, svd.driver)
    method, params = registry.resolve("casa")
    inputs = LayerInputs(shape, update, basis, None, DenseOperator(D))

    def products():
        return (basis.U.T @ D @ basis.Vh.T) if m >= n else (basis.U.T @ (D @ basis.Vh.T))

    def further(kept):
        output = method.transfer(LayerInputs(shape, update, basis, None, inputs.drift, kept), params)
        return output, truncated_svd(output.update, rank=rank, start=output.start, seed=1)

    gemm_seconds, _ = best(repeat, products)
    routing_seconds, kept = best(repeat, method.prepare, inputs, params)
    update_seconds, (output, small) = best(repeat, further, kept)
    return {
        "shape": shape,
        "driver": svd.driver,
        "gemm": gemm_seconds,
        "svd": svd_seconds,
        "routing": routing_seconds,
        "update": update_seconds,
        "ratio": (routing_seconds + update_seconds) / gemm_seconds,
        "kept": update_seconds / gemm_seconds,
        "dominant": output.stats["dominant_share"],
        "energy": small.energy_kept,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=WAN_SHAPES)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine that is not idle")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    for index, shape in enumerate(options.shapes):
        row = measure(shape, options.rank, options.repeat, clock)
        if index == 0:
            print("  ".join(f"{key:>9}" for key in row))
        print("  ".join(f"{value:>9.3f}" if isinstance(value, float) else f"{value:>9}" for value in row.values()))


if __name__ == "__main__":
    main()
