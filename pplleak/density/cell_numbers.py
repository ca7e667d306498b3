"""All real numbers of a batch at once, drawn from the Gaussian that secants say they have.

A clean gradient tells the sum of two records' numbers far better than either, and moves of one record at a time creep
along what it leaves open. Of the numbers e = x − x̂ of all records, beside codes that stay as they are, and with
u(x) ≈ u(x̂) + Jᵀe,

    log q(e) = −‖g − u(x̂) − Jᵀe‖² / 2σ² − ½ ‖x̂ + e‖²,   so  e ~ Normal(A⁻¹h, A⁻¹),   A = J Jᵀ / σ² + I,
    h = J (g − u(x̂)) / σ² − x̂

u(x̂) being that of the codes a chain holds now. I stands for a prior, of standardised columns. With m = A⁻¹h and
z ~ Normal(0, A⁻¹),

    e' = m + ρ (e − m) + √(1 − ρ²) z

leaves q as it is for every ρ, and is taken or refused by Metropolis' rule with q and the true density: ρ = 0 is an
independence sampler (Tierney 1994, section 2.3.3), and of a network with kinks, which cut q off, shorter steps are
taken more often (Neal 1998, equation 15; Cotter et al. 2013). J and x̂ stay as they were made, so that the move is
exact however far a chain goes from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pplleak.density.cell_surrogates import STEP
from pplleak.density.cells import ENTRIES, Batch, Residual

KEPT = (0.0, 0.7, 0.9, 0.97)  # ρ of the moves in a visit


@dataclass(frozen=True, eq=False)
class Numbers:
    """Of C chains: at (C, B, R): x̂; slopes (C, B·R, D): J; root (C, B·R, B·R): L of A = L Lᵀ. places: of the numbers
    among the scores, entries: in x; only such as are never missing. steps: ρ of the moves in a visit."""

    fit: Residual
    records: Any
    places: list[int]
    entries: Tensor
    at: Tensor
    slopes: Tensor
    root: Tensor
    steps: tuple[float, ...] = KEPT

    @staticmethod
    def about(fit: Residual, records: Any, batch: Batch) -> Numbers | None:
        """About what chains hold; None of one record, without such numbers, or where J or A would be large, or A is
        singular in float64."""
        columns, (chains, size, _) = records.columns, batch.x.shape
        places = [r for r, c in enumerate(columns.real) if not c.missing]
        count = size * len(places)
        if size < 2 or not count or chains * count * max(count, fit.density.client.update_size) > ENTRIES:
            return None
        entries = columns.places[places].to(batch.x.device)
        slopes = []
        for b in range(size):
            old = fit.shared(batch.x[:, b], b)
            for i in entries.tolist():
                x = batch.x[:, b].clone()
                x[:, i] += STEP
                slopes.append((fit.shared(x, b) - old) / STEP)
        j = torch.stack(slopes, 1)
        one = torch.eye(count, dtype=j.dtype, device=j.device)
        root, failed = torch.linalg.cholesky_ex(j @ j.mT / fit.sigma**2 + one)
        if bool(failed.any()) or not bool(root.isfinite().all()):
            return None
        return Numbers(fit, records, places, entries, batch.x[..., entries].double(), j, root)

    def mean(self, batch: Batch) -> Tensor:
        """m beside what else chains hold, whatever their numbers are, (C, B·R)."""
        x = batch.x.clone()
        x[..., self.entries] = self.at.to(x)
        pull = (self.slopes @ self.fit.rest(x)[..., None])[..., 0] / self.fit.sigma**2 - self.at.flatten(1)
        return torch.cholesky_solve(pull[..., None], self.root)[..., 0]

    def drawn(self, batch: Batch, mean: Tensor, rho: float) -> tuple[Batch, Tensor]:
        """The batch with other numbers, and log q of what it held less that of these, (C,), float64."""
        z = torch.linalg.solve_triangular(self.root.mT, torch.randn_like(mean)[..., None], upper=True)[..., 0]
        e = mean + rho * (self._away(batch) - mean) + math.sqrt(1 - rho**2) * z
        numbers, scores = torch.zeros_like(batch.scores), batch.scores.clone()
        numbers[..., self.places] = (self.at + e.unflatten(1, self.at.shape[1:])).to(numbers)
        scores[..., self.places] = self.records.scores(numbers)[..., self.places]
        made = Batch(batch.codes, scores, self.records.decode(batch.codes, scores).flatten(2))
        return made, self._log_q(batch, mean) - self._log_q(made, mean)

    def _away(self, batch: Batch) -> Tensor:
        """e of what chains hold, (C, B·R)."""
        return (batch.x[..., self.entries].double() - self.at).flatten(1)

    def _log_q(self, batch: Batch, mean: Tensor) -> Tensor:
        """log of the density of a batch's scores, up to a constant."""
        stretched = (self.root.mT @ (self._away(batch) - mean)[..., None])[..., 0]
        slopes = self.records.slopes(batch.scores)[..., self.places].double()
        return -0.5 * stretched.square().sum(1) + slopes.log().sum((1, 2))
