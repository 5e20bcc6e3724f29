"""Parts of adapters of every kind as trainers spell them, and the updates that they stand for by definition."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import pico
from loraport.adapters.parse import open_adapter

Parts = dict[str, Tensor]
WEIGHTS = pico.weights(1)
LAYERS = ["blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.ffn.2"]


def gaussian(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(kind: str, m: int, n: int) -> tuple[Parts, Tensor]:
    """Parts of an additive kind with an alpha, and their update by the definition."""
    if kind == "lora":
        up, down = gaussian(m, 3, seed=1), gaussian(3, n, seed=2, size=0.2)
        return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.5)}, 0.5 * up @ down
    if kind == "loha":
        a, b, c, d = gaussian(m, 2, seed=1), gaussian(2, n, seed=2), gaussian(m, 2, seed=3), gaussian(2, n, seed=4)
        parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)}
        return parts, 0.5 * (a @ b) * (c @ d)
    w1, up, down = gaussian(4, 4, seed=1), gaussian(m // 4, 2, seed=2), gaussian(2, n // 4, seed=3)
    parts = {"lokr_w1": w1, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": torch.tensor(0.5)}
    return parts, 0.25 * torch.kron(w1, up @ down)


def write_lycoris(made: dict[str, Parts], path: Path) -> Path:
    stems = {f"lycoris_{layer.replace('.', '_')}": parts for layer, parts in made.items()}
    save_file({f"{stem}.{name}": t.clone() for stem, parts in stems.items() for name, t in parts.items()}, path)
    return path


def tucker(a: Tensor, b: Tensor, core: Tensor) -> Tensor:
    """The sum over i and j of a[i] (rows) times b[j] (inputs) times core[i, j] (kernel)."""
    found = torch.zeros(a.shape[1], b.shape[1], *core.shape[2:])
    for i in range(len(a)):
        for j in range(len(b)):
            found += a[i].reshape(-1, 1, 1, 1, 1) * b[j].reshape(1, -1, 1, 1, 1) * core[i, j]
    return found


def close(found: Tensor, wanted: Tensor, share: float = 1e-5) -> None:
    assert (found.double() - wanted.double()).norm() <= share * wanted.double().norm() + 1e-7


def updates(made: dict[str, Parts], source, tmp_path: Path) -> dict[str, Tensor]:
    adapter = open_adapter(write_lycoris(made, tmp_path / "x.safetensors"), source)
    assert adapter.layers.keys() == made.keys()
    return {name: layer.load().dense() for name, layer in adapter.layers.items()}


def cayley(blocks: Tensor, bound: float) -> Tensor:
    """(1 + Q) (1 - Q)^-1 of every block, in float64."""
    skew = (blocks - blocks.mT).double()
    if 0 < bound < skew.norm():
        skew = skew * bound / skew.norm()
    eye = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


def parts_of(case: str, m: int, n: int) -> Parts:
    if case.startswith("DoRA"):
        parts, _ = factors("lora", m, n)
        return parts | {"dora_scale": 1 + gaussian(*((m, 1) if case == "DoRA of rows" else (1, n)), seed=5, size=0.2)}
    if case == "GLoRA":
        up, down = gaussian(m, 2, seed=3, size=0.1), gaussian(2, n, seed=4)
        first, second = gaussian(n, 2, seed=1, size=0.1), gaussian(2, n, seed=2, size=0.1)
        return {"a1.weight": first, "a2.weight": second, "b1.weight": up, "b2.weight": down}
    if case == "split":
        halves = {f"lora_up.{i}.weight": gaussian(m // 2, 2, seed=i) for i in range(2)}
        return halves | {f"lora_down.{i}.weight": gaussian(2, n, seed=i + 3) for i in range(2)}
    return {
        "OFT": {"oft_blocks": gaussian(m // 4, 4, 4, size=0.2), "alpha": torch.tensor(0.0)},
        "BOFT": {"oft_blocks": gaussian(3, m // 4, 4, 4, size=0.2), "alpha": torch.tensor(0.0)},
        "IA3": {"weight": gaussian(n, size=0.2), "on_input": torch.tensor(1)},
        "replaced": {"set_weight": gaussian(m, n, size=0.2)},
    }[case]
