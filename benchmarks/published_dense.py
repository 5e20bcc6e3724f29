"""The published procedure, done densely as its description says: the baseline that loraport is timed against.

    python benchmarks/published_dense.py --source S --target T --work DIR --lora L1 --out O1 --lora L2 --out O2

Written from the equations (arXiv 2605.01929 and what is documented of its published scripts), for layers of
models with original Wan names and LoRAs in `diffusion_model.<name>.lora_A/B.weight` spelling:

    A  bases    full SVD of every source weight in float32, stored in bfloat16
    B  drift    C_fft = U^T (W_target - U S Vh) V from the stored factors, stored in bfloat16
    C  transfer for every LoRA: load both again, cluster, mask, arbitrate, randomised SVD at rank 32

A and B are done once, C for every LoRA. Each step is timed for each layer, reading and writing included.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

TAU, Q_DOM, Q_ACT, RANK, ITERATIONS = 0.5, 0.5, 0.85, 32, 6
HEAD_ENERGY = 0.9
SAMPLE = 10_000_000
"""More candidates than this are sampled before the quantile, as published (there without a seed)."""


@dataclass(frozen=True)
class Decisions:
    """What the dense procedure decides for a layer."""

    routing: Tensor
    labels: Tensor
    dominant: Tensor
    arbitrated: Tensor


def full_basis(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m x m), S, Vh (n x n) of a weight."""
    return torch.linalg.svd(W, full_matrices=True)


def drift_routing(U: Tensor, S: Tensor, Vh: Tensor, W_target: Tensor) -> Tensor:
    """C_fft (m x n), the source weight rebuilt from its factors."""
    p = S.numel()
    source = (U[:, :p] * S) @ Vh[:p]
    return U.T @ (W_target - source) @ Vh.T


def head_size(S: Tensor, m: int, n: int) -> int:
    """Directions with 90 % of the energy on square layers, all of them on others."""
    if m != n:
        return S.numel()
    share = S.square().cumsum(0) / S.square().sum()
    return int((share < HEAD_ENERGY).sum()) + 1


def components(edges: Tensor) -> tuple[int, Tensor]:
    """Connected components of a symmetric boolean matrix."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    count, labels = connected_components(csr_matrix(edges.cpu().numpy()), directed=False)
    return count, torch.from_numpy(labels).long().to(edges.device)


def decide(
    C_lora: Tensor, C_fft: Tensor, S: Tensor, *, tau: float = TAU, q_dom: float = Q_DOM, q_act: float = Q_ACT
) -> Decisions:
    """The new routing matrix of a layer, from those of the LoRA and of the drift (m x n each)."""
    m, n = C_lora.shape
    k = head_size(S, m, n)
    lora, fft = C_lora[:k, :k], C_fft[:k, :k]

    reach = lora.abs() / ((S[:k, None] - S[None, :k]).abs() + 1e-6)
    reach.fill_diagonal_(0)
    edges = reach > tau
    count, labels = components(edges | edges.T)
    onehot = torch.nn.functional.one_hot(labels, count).to(C_lora.dtype)  # k x clusters

    sizes = onehot.sum(0) + 1e-6
    receivers = onehot.T @ fft.norm(dim=1) / sizes
    senders = onehot.T @ fft.norm(dim=0) / sizes
    rows = torch.zeros(m, dtype=torch.bool, device=C_lora.device)
    columns = torch.zeros(n, dtype=torch.bool, device=C_lora.device)
    rows[:k] = (receivers >= torch.quantile(receivers, q_dom))[labels]
    columns[:k] = (senders >= torch.quantile(senders, q_dom))[labels]
    dominant = rows[:, None] | columns[None, :]

    product = C_lora * C_fft
    between = onehot.T @ product[:k, :k] @ onehot
    lora_norm = (onehot.T @ lora.square() @ onehot).sqrt()
    fft_norm = (onehot.T @ fft.square() @ onehot).sqrt()
    cosine = between / (lora_norm * fft_norm + 1e-8)
    context = torch.ones_like(C_lora)
    context[:k, :k] = cosine[labels][:, labels]
    score = product.abs() * context

    routing = C_lora - C_fft
    routing[dominant] = C_lora[dominant]
    candidates = dominant & (C_lora.sign() == C_fft.sign())
    scores = score[candidates]
    arbitrated = torch.zeros_like(dominant)
    if scores.numel() > 0:
        if scores.numel() > SAMPLE:
            chosen = torch.randint(scores.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(0))
            scores = scores[chosen.to(scores.device)]
        arbitrated = candidates & (score > torch.quantile(scores, q_act))
        larger = torch.where(C_lora.abs() > C_fft.abs(), C_lora, C_fft)
        routing[arbitrated] = (larger - C_fft)[arbitrated]
    return Decisions(routing, labels, dominant, arbitrated)


def low_rank(U: Tensor, Vh: Tensor, routing: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """New factors B (m x rank), A (rank x n) of U routing Vh by the library's randomised SVD."""
    left, S, right = torch.svd_lowrank(routing, q=rank, niter=ITERATIONS)
    root = S.sqrt()
    return U @ (left * root), (right * root).T @ Vh


def transfer_layer(B: Tensor, A: Tensor, U: Tensor, S: Tensor, Vh: Tensor, C_fft: Tensor, rank: int = RANK) -> dict:
    """Step C for one layer, from loaded tensors: new factors and a few figures."""
    C_lora = (U.T @ B) @ (A @ Vh.T)
    decisions = decide(C_lora, C_fft, S)
    new_B, new_A = low_rank(U, Vh, decisions.routing, rank)
    facts = {
        "clusters": int(decisions.labels.max()) + 1,
        "dominant_share": float(decisions.dominant.float().mean()),
        "arbitrated_share": float(decisions.arbitrated.float().mean()),
    }
    return {"B": new_B, "A": new_A, "facts": facts}


def lora_layers(lora: Path) -> list[str]:
    """Names of the layers in a LoRA file."""
    tail = ".lora_A.weight"
    with safe_open(lora, "pt") as file:
        return [key.removeprefix("diffusion_model.").removesuffix(tail) for key in file.keys() if key.endswith(tail)]  # noqa: SIM118


def read(path: Path, key: str, device: str = "cpu") -> Tensor:
    """One tensor of a file, in float32."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(key).to(device).float()


def read_all(path: Path, device: str) -> dict[str, Tensor]:
    """All tensors of a file, in float32."""
    return {key: part.float() for key, part in load_file(path, device=device).items()}


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors into a file, in bfloat16."""
    save_file({key: part.bfloat16().contiguous() for key, part in tensors.items()}, path)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = "wall"


def _timed(step: Callable[[str], dict | None], names: list[str]) -> dict[str, dict]:
    found = {}
    for name in names:
        began = CLOCKS[clock]()
        facts = step(name) or {}  # what is written waits for a card
        found[name] = {"seconds": CLOCKS[clock]() - began} | facts
    return found


def bases(source: Path, work: Path, names: list[str], device: str = "cpu") -> dict[str, dict]:
    """Step A."""

    def step(name: str) -> None:
        U, S, Vh = full_basis(read(source, f"{name}.weight", device))
        write(work / f"{name}.svd.safetensors", {"U": U, "S": S, "Vh": Vh})

    return _timed(step, names)


def drifts(target: Path, work: Path, names: list[str], device: str = "cpu") -> dict[str, dict]:
    """Step B."""

    def step(name: str) -> None:
        parts = read_all(work / f"{name}.svd.safetensors", device)
        C = drift_routing(parts["U"], parts["S"], parts["Vh"], read(target, f"{name}.weight", device))
        write(work / f"{name}.drift.safetensors", {"C": C})

    return _timed(step, names)


def transfer(lora: Path, work: Path, names: list[str], out: Path, device: str = "cpu") -> dict[str, dict]:
    """Step C for one LoRA."""
    written: dict[str, Tensor] = {}

    def step(name: str) -> dict:
        parts = read_all(work / f"{name}.svd.safetensors", device)
        C_fft = read_all(work / f"{name}.drift.safetensors", device)["C"]
        stem = f"diffusion_model.{name}"
        B, A = (read(lora, f"{stem}.lora_{side}.weight", device) for side in "BA")
        made = transfer_layer(B, A, parts["U"], parts["S"], parts["Vh"], C_fft)
        written[f"{stem}.lora_A.weight"] = made["A"].contiguous().cpu()
        written[f"{stem}.lora_B.weight"] = made["B"].contiguous().cpu()
        return made["facts"]

    found = _timed(step, names)
    found |= _timed(lambda _: save_file(written, out), ["write"])
    return found


def main() -> None:
    """Command line; prints one JSON object with seconds per step and layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the stored bases and drifts")
    parser.add_argument("--lora", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, action="append", required=True)
    parser.add_argument("--clock", choices=CLOCKS, default=clock, help="cpu: time of the processor, all threads")
    args = parser.parse_args()
    globals()["clock"] = args.clock
    args.work.mkdir(parents=True, exist_ok=True)
    names = lora_layers(args.lora[0])
    full_basis(torch.eye(8))  # the libraries' own start is not part of the procedure
    result = {"bases": bases(args.source, args.work, names), "drift": drifts(args.target, args.work, names)}
    result["transfers"] = [transfer(lora, args.work, names, out) for lora, out in zip(args.lora, args.out, strict=True)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
