"""Everything the fit needs of the probes, as inner products: one small Gram matrix a time step.

Columns, in order: the Jacobian of the target's velocity in each coefficient (K of them), what the LoRA does in the
target at the starting coefficients (`now`), what it does in the source with the prompt (`prompted`) and with the empty
prompt (`empty`). What is wanted under guidance w is `e_w = empty + w (prompted - empty)`, a combination of columns, so
one Gram matrix serves every w, every penalty and every subset of coefficients.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NOW, PROMPTED, EMPTY = -3, -2, -1


@dataclass(frozen=True)
class Moments:
    """Mean inner products of the columns per output element, one matrix a time step, in float64."""

    gram: Float[Tensor, "t q q"]

    @property
    def count(self) -> int:
        """K, the number of coefficients."""
        return self.gram.shape[-1] - 3

    def wanted(self, guidance: float) -> Float[Tensor, " q"]:
        """Weights of the columns that make up e_w."""
        made = torch.zeros(self.gram.shape[-1], dtype=torch.float64)
        made[PROMPTED], made[EMPTY] = guidance, 1 - guidance
        return made

    def ridge(
        self,
        anchor: Float[Tensor, " k"],
        *,
        guidance: float,
        penalty: float,
        free: list[int],
        around: Float[Tensor, " k"] | None = None,
        scale: float | None = None,
    ) -> Float[Tensor, " k"]:
        """Minimise `|now + J (c - a) - e_w|² + ρ s |c - anchor|²` over the free coefficients.

        `a` is where the moments were measured: `c = anchor + (JᵀJ + ρ s I)⁻¹ Jᵀ (e_w - now + J (a - anchor))`.

        Args:
            anchor: what the penalty holds the coefficients to: direct reuse at some strength.
            around: a, by default the anchor.
            scale: s, by default the mean of `diag JᵀJ` over the free coefficients, so that ρ has no unit;
                a later round is given the first one's.
        """
        gram = self.gram.sum(0)
        residual = self.wanted(guidance)
        residual[NOW] = -1.0
        if around is not None:
            residual[: self.count] = around - anchor
        JJ = gram[free][:, free]
        s = self.scale(free) if scale is None else scale
        step = torch.linalg.solve(JJ + penalty * s * torch.eye(len(free), dtype=torch.float64), gram[free] @ residual)
        made = anchor.clone()
        made[free] += step
        return made

    def scale(self, free: list[int]) -> float:
        """Mean of `diag JᵀJ`, summed over time steps: how much a coefficient changes the velocity."""
        return max(float(self.gram.sum(0).diagonal()[free].mean()), torch.finfo(torch.float64).tiny)

    def loss(self, start: Float[Tensor, " k"], c: Float[Tensor, " k"], guidance: float) -> float:
        """`|now + J (c - start) - e_w|²` by the linear model, per output element, mean over time steps."""
        weights = -self.wanted(guidance)
        weights[NOW] += 1.0
        weights[: self.count] = c - start
        return float((weights @ self.gram.mean(0) @ weights).clamp_min(0))


@dataclass
class Gathering:
    """Adds up the Gram matrices of one time step after the other."""

    totals: list[Tensor]
    elements: list[int]

    @classmethod
    def empty(cls, steps: int, columns: int) -> "Gathering":
        """Nothing yet."""
        return cls([torch.zeros(columns, columns, dtype=torch.float64) for _ in range(steps)], [0] * steps)

    def add(self, step: int, columns: Float[Tensor, "q e"]) -> None:
        """Add the columns over some output elements."""
        gram = torch.zeros_like(self.totals[step])
        for part in columns.split(1 << 16, dim=1):  # float64 products without a float64 copy of everything
            wide = part.double()
            gram += (wide @ wide.T).cpu()
        self.totals[step] += gram
        self.elements[step] += columns.shape[1]

    def moments(self) -> Moments:
        """The means."""
        return Moments(
            torch.stack([total / max(count, 1) for total, count in zip(self.totals, self.elements, strict=True)])
        )
