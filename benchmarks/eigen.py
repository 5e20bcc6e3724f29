"""The symmetric eigenproblem that a basis stands on, in the ways that this device offers.

    python benchmarks/eigen.py                              Wan2.1-1.3B's width, one thread
    python benchmarks/eigen.py --device cuda --sizes 1536 3072 5120

G = W^T W of a weight with singular values like Wan's. Columns: seconds a matrix (best of --repeat), largest entry of
G V - V L over the largest eigenvalue, largest entry of V^T V - I; both are computed in float64. A way that is not
there on this device is left out.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from matrices import weight_pair

Eigen = tuple[Tensor, Tensor]  # values, vectors
BATCH = 4
STEPS = 8  # of the iteration for the sign; enough in float32 for what lies as far from the cut as here


def by_split(G: Tensor, at: float) -> Eigen:
    """Cut the spectrum in two at `at` by the sign function of G - at, then one eigenproblem on each side.

    Nothing but products and Cholesky factors before the two halves. That the cut is known beforehand is a favour.
    """
    n = len(G)
    eye = torch.eye(n, dtype=G.dtype, device=G.device)
    sign = sign_of(G - at * eye)
    upper = int(((sign.trace() + n) / 2).round())
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, n, generator=generator, dtype=torch.float32).to(G)
    above = (start + sign @ start)[:, :upper]
    below = (start - sign @ start)[:, upper:]
    found = []
    for part in (above, below):
        Q = torch.linalg.qr(part).Q
        values, vectors = torch.linalg.eigh(Q.T @ G @ Q)
        found.append((values, Q @ vectors))
    return torch.cat([found[1][0], found[0][0]]), torch.cat([found[1][1], found[0][1]], dim=1)


def sign_of(X: Tensor) -> Tensor:
    """Sign function of a symmetric matrix: Halley's iteration with weights for a spectrum down to `low`."""
    eye = torch.eye(len(X), dtype=X.dtype, device=X.device)
    X = X / torch.linalg.matrix_norm(X, 1)  # at least its 2-norm
    low = 1e-4
    for _ in range(STEPS):
        d = (4 * (1 - low**2) / low**4) ** (1 / 3) if low < 1 else 0.0
        root = (1 + d) ** 0.5
        a = root + 0.5 * (8 - 4 * d + 8 * (2 - low**2) / (low**2 * root)) ** 0.5
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        L = torch.linalg.cholesky(torch.addmm(eye, X, X, alpha=c))
        X = (b / c) * X + (a - b / c) * torch.cholesky_solve(X, L)
        X = (X + X.T) / 2
        low = min(low * (a + b * low**2) / (1 + c * low**2), 1.0)
    return X


def ways(W: Tensor, G: Tensor) -> Iterator[tuple[str, int, Callable[[], Eigen | None]]]:
    """(name, matrices at once, what to time) of all that is there. None for vectors that are not computed."""
    wide = G.double()
    yield "eigh, float32", 1, lambda: torch.linalg.eigh(G)
    yield "eigh, float64", 1, lambda: torch.linalg.eigh(wide)
    yield "values alone, float32", 1, lambda: (torch.linalg.eigvalsh(G), None)[1]
    batch = G.expand(BATCH, -1, -1).contiguous()
    yield f"{BATCH} at once, float32", BATCH, lambda: tuple(part[0] for part in torch.linalg.eigh(batch))
    values = torch.linalg.eigvalsh(wide)
    cut = float(values[len(G) // 2 - 1 : len(G) // 2 + 1].mean())
    yield "cut by the sign, float32", 1, lambda: by_split(G, cut)
    for driver in ("gesvdj", "gesvd") if G.is_cuda else ("gesdd",):
        yield f"SVD of W, {driver}", 1, lambda driver=driver: _squared(W, driver if W.is_cuda else None)
    if G.device.type == "cpu":
        yield from _other_libraries(G)


def _squared(W: Tensor, driver: str | None) -> Eigen:
    _, S, Vh = torch.linalg.svd(W, full_matrices=False, driver=driver)
    return S.square(), Vh.T


def _other_libraries(G: Tensor) -> Iterator[tuple[str, int, Callable[[], Eigen]]]:
    import numpy

    matrix = G.numpy()
    yield "numpy, in float64", 1, lambda: tuple(map(torch.from_numpy, numpy.linalg.eigh(matrix)))
    try:
        from scipy.linalg import eigh
    except ImportError:
        return
    for driver in ("evd", "evr"):
        yield (
            f"scipy {driver}, float32",
            1,
            lambda driver=driver: tuple(map(torch.from_numpy, eigh(matrix, driver=driver, check_finite=False))),
        )


def errors(G: Tensor, found: Eigen) -> tuple[float, float]:
    """Residual over the largest eigenvalue, and departure from orthogonality."""
    values, V, exact = found[0].double(), found[1].double(), G.double()
    residual = (exact @ V - V * values).abs().max() / values.abs().max()
    return float(residual), float((V.T @ V - torch.eye(len(G), dtype=V.dtype, device=V.device)).abs().max())


def seconds(work: Callable[[], object], repeat: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Of the quickest of so many runs, after one that does not count on an accelerator."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    if device.type != "cpu":
        work()
    best = float("inf")
    for _ in range(repeat):
        wait()
        began = clock()
        work()
        wait()
        best = min(best, clock() - began)
    return best


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1536])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine that is not idle")
    parser.add_argument("--only", nargs="+", default=None, metavar="TEXT", help="ways whose names hold one of these")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    print(f"{'n':>6}  {'way':<26} {'seconds':>9} {'residual':>10} {'orthogonal':>10}")
    for n in args.sizes:
        W = weight_pair(n, n, 0.03, torch.Generator().manual_seed(0))[0].to(device)
        G = W.T @ W
        for name, count, work in ways(W, G):
            if args.only and not any(text in name for text in args.only):
                continue
            took = seconds(work, args.repeat, device, clock) / count
            found = work()
            told = "" if found is None else "".join(f" {error:>10.1e}" for error in errors(G, found))
            print(f"{n:>6}  {name:<26} {took:>9.4f}{told}", flush=True)


if __name__ == "__main__":
    main()
