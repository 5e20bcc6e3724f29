"""Can the strength be foretold from weights alone? A fit on all other targets, or on all other LoRAs, against rules.

For each pair: how far the target moved where the LoRA works, how much of that moved singular values, how large the LoRA
is, and how much of the drift lies on the directions that it reads and writes. A ridge regression from these to the
strength at which reuse is best; what is lost by following it, against the best in hindsight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.evaluate.family import Family, Lora, Model
from loraport.evaluate.networks import load_network
from loraport.evaluate.run import Evidence
from loraport.evaluate.tables import TITLES, markdown
from loraport.sampling import tiny

RIDGE = 1.0
RULES = (1.0, 1.25, 1.5)


@dataclass(frozen=True, eq=False)
class LoraOnTarget:
    """One LoRA on one target.

    Attributes:
        lora: name.
        target: name.
        features: of the weights, see `features`.
        scores: of reuse, one a strength.
    """

    lora: str
    target: str
    features: Float[Tensor, " k"]
    scores: Float[Tensor, " s"]


def features(family: Family, lora: Lora, target: Model) -> Float[Tensor, "5"]:
    """Logarithms of: drift, rigidity, LoRA (all relative to the source's weights), drift on the LoRA's directions
    relative to the drift, and the LoRA's cosine with the drift (not a logarithm); over the layers of the LoRA."""
    network = load_network(family, family.source)
    source = {name: value.clone() for name, value in network.state_dict().items()}
    tiny.merge_lora(network, lora.file)
    taught = network.state_dict()
    moved = load_network(family, target).state_dict()
    sums = torch.zeros(6, dtype=torch.float64)
    for name, weight in source.items():
        update = (taught[name] - weight).double()
        if weight.ndim != 2 or not bool(update.any()):
            continue
        W, drift = weight.double(), (moved[name] - weight).double()
        U, S, Vh = torch.linalg.svd(update, full_matrices=False)
        rank = int((1e-3 * S[0] < S).sum())
        common = U[:, :rank].T @ drift @ Vh[:rank].T
        stretched = torch.linalg.svdvals(W + drift) - torch.linalg.svdvals(W)
        parts = [W.square(), drift.square(), stretched.square(), update.square(), common.square(), update * drift]
        sums += torch.stack([part.sum() for part in parts])
    weight_, drift_, stretch, lora_, on_lora, product = sums.tolist()
    ratios = [drift_ / weight_, stretch / weight_, lora_ / weight_, on_lora / drift_]
    return torch.tensor([*(0.5 * torch.tensor(ratios).log()), product / (lora_ * drift_) ** 0.5])


def pairs(evidence: Evidence, measure: str) -> tuple[list[float], list[LoraOnTarget]]:
    """The strengths of reuse, and every pair with its scores at them."""
    loras = {lora.name: lora for lora in evidence.family.loras}
    targets = {target.name: target for target in evidence.family.targets}
    found, strengths = [], []
    for lora, target in evidence.pairs():
        reuse = evidence.curve(lora, target)
        strengths = list(reuse)
        scores = torch.tensor([cell.estimates[measure].value for cell in reuse.values()])
        found.append(LoraOnTarget(lora, target, features(evidence.family, loras[lora], targets[target]), scores))
    return strengths, found


def foretold(known: Sequence[LoraOnTarget], asked: LoraOnTarget, strengths: Sequence[float]) -> float:
    """The strength that a ridge regression on other pairs gives."""
    X = torch.stack([pair.features for pair in known]).double()
    y = torch.tensor([strengths[int(pair.scores.argmin())] for pair in known], dtype=torch.float64)
    middle, spread = X.mean(0), X.std(0).clamp_min(1e-6) if len(X) > 1 else torch.ones(X.shape[1])  # one says nothing
    X, x = (X - middle) / spread, (asked.features.double() - middle) / spread
    slope = torch.linalg.solve(X.T @ X + RIDGE * torch.eye(X.shape[1], dtype=torch.float64), X.T @ (y - y.mean()))
    return float(y.mean() + x @ slope)


def table(evidence: Evidence) -> str:
    """What every rule loses against the best strength in hindsight, mean over pairs; smaller is better."""
    rows = []
    for measure in ("to_aim", "frechet"):
        strengths, known = pairs(evidence, measure)
        if len({pair.lora for pair in known}) < 2 or len({pair.target for pair in known}) < 2:
            return "Too few pairs.\n"
        lost: dict[str, list[float]] = {}
        for asked in known:
            ideas = {f"always {strength:g}": strength for strength in RULES}
            for name, others in (
                ("target", [pair for pair in known if pair.target != asked.target]),
                ("LoRA", [pair for pair in known if pair.lora != asked.lora]),
            ):
                ideas[f"foretold, its {name} left out"] = foretold(others, asked, strengths)
                mean = sum(strengths[int(pair.scores.argmin())] for pair in others) / len(others)
                ideas[f"mean of the others, its {name} left out"] = mean
            for rule, strength in ideas.items():
                at = min(range(len(strengths)), key=lambda i: abs(strengths[i] - strength))
                lost.setdefault(rule, []).append(float(asked.scores[at] - asked.scores.min()))
        rows += [[TITLES[measure], rule, f"{sum(each) / len(each):.4f}"] for rule, each in lost.items()]
    return markdown(["measure", "strength", "lost against the best in hindsight"], rows)
