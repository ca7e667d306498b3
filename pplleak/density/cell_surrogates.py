"""Quadratic stand-ins for log p(g | one record of a batch), from which a sampler may take its proposals.

With the update linear in the record, u(x) ≈ u₀ + J (x − x̂), the likelihood −‖r − w u(x)‖² / 2σ² is a quadratic form in
x, and candidates that differ in a few entries cost as little as these. What u₀, J and x̂ are is the difference:

    about   secants at what a chain holds, of each chain its own: right where the posterior is narrow
    fitted  least squares over a cloud of records, one for all chains: where it is wide. Secants of a ReLU network cross
            their kinks a few cells on, and are off by a hundred nats where the fit is by two
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pplleak.data.columns import Columns
from pplleak.density.cell_blocks import product
from pplleak.density.cells import ENTRIES, Batch, Residual, Tried, gram_by_chain, inner_by_chain

STEP = 1e-3  # standard deviations of a number
RIDGE = 0.1  # records in which an entry is as the mean has it, beside those of a fit


@dataclass(frozen=True, eq=False)
class Quadratic:
    """`Residual` of one record with its update linear about x̂; C chains, or 1 where all have the same.

    at_ (C, width): x̂; across (r (C, D) -> (C, width)): ⟨r, J_i⟩; pull (C, width): −w² ⟨u₀, J_i⟩ / σ²;
    form (C, width, width): w² JᵀJ / σ²; slopes (C, width): of what is linear at x̂, beside the residual that it was told
    """

    exact: Residual
    at_: Tensor
    across: Callable[[Tensor], Tensor]
    pull: Tensor
    form: Tensor
    slopes: Tensor

    @staticmethod
    def about(exact: Residual, batch: Batch, b: int) -> Quadratic:
        """About what each chain holds, u₀ = u(x̂), by secants J_i = (u(x̂ + h_i e_i) − u(x̂)) / h_i.

        A step h_i is as long as the cell's own: ±1 of a category, to a near value of a grid, STEP of a number: of
        a ReLU network a long one would cross kinks.
        """
        x, width = batch.x[:, b], batch.x.shape[2]
        steps = stepped(exact.density.client.columns, x)
        tried = x[:, None].repeat(1, 1 + width, 1)
        tried[:, 1:] += torch.diag_embed(steps)
        first = exact.update(tried.flatten(0, 1), b)
        gram = gram_by_chain(first, 1 + width)
        aside = gram[:, 1:, 0] - gram[:, :1, 0]
        inner = gram[:, 1:, 1:] - gram[:, 1:, :1] - gram[:, :1, 1:] + gram[:, :1, :1]
        scale = (exact.weight(b) / exact.sigma) ** 2

        def across(beside: Tensor) -> Tensor:
            found = inner_by_chain(first, beside, 1 + width)
            return (found[:, 1:] - found[:, :1]) / steps

        return Quadratic(
            exact, x, across, -scale * aside / steps, scale * inner / (steps[:, :, None] * steps[:, None]),
            torch.zeros_like(x),
        )  # fmt: skip

    @staticmethod
    def fitted(exact: Residual, cloud: Tensor, b: int) -> Quadratic:
        """The same for all chains: u₀ and J by least squares over records x_n (N, width), x̂ their mean,

        J = argmin Σ_n ‖u(x_n) − u₀ − J (x_n − x̂)‖² + RIDGE ‖J‖²_F
        """
        x, width = cloud.double(), cloud.shape[1]
        mean = x.mean(0)
        away, centre = x - mean, x.new_full((1, len(x)), 1 / len(x))
        gram = away.mT @ away + RIDGE * torch.eye(width, dtype=x.dtype, device=x.device)
        summed = _summed(exact, cloud, torch.cat([centre, torch.linalg.solve(gram, away.mT)]), b)
        first, matrix = summed[:1], summed[1:]  # u₀ and Jᵀ
        scale = (exact.weight(b) / exact.sigma) ** 2
        return Quadratic(
            exact, mean[None].to(cloud), lambda beside: beside @ matrix.mT, -scale * (first @ matrix.mT),
            scale * (matrix @ matrix.mT)[None], torch.zeros_like(mean[None]),
        )  # fmt: skip

    def told(self, beside: Tensor, b: int) -> Quadratic:
        """The same, beside a residual (C, D)."""
        slopes = self.across(beside) * (self.exact.weight(b) / self.exact.sigma**2)
        return replace(self, slopes=slopes + self.pull)

    def beside(self, batch: Batch, b: int) -> Tensor:
        return self.exact.beside(batch, b)

    def after(self, beside: Tensor, batch: Batch, b: int) -> Tensor:
        return self.exact.after(beside, batch, b)

    def height(self, x: Tensor) -> Tensor:
        """Of records x (C, width), (C,)."""
        d = (x - self.at_).double()
        return ((self.slopes - 0.5 * product(self.form, d)) * d).sum(1)

    def at(self, beside: Tensor, batch: Batch, b: int, tried: Tried) -> Tensor:
        """Relative to `tried.old`."""
        slope = self.slopes - product(self.form, (tried.old - self.at_).double())
        moved = (tried.x[..., tried.entries] - tried.old[:, None, tried.entries]).double()
        whole = len(tried.entries) == self.at_.shape[1]
        form = self.form if whole else self.form[:, tried.entries[:, None], tried.entries]
        return ((slope[:, None, tried.entries] - 0.5 * (moved @ form)) * moved).sum(-1)


def near(records: Any, batch: Batch) -> Tensor:
    """Batches with one column of every record in any of its states, drawn evenly, (columns · C, B, width): what a fit
    has to know of states that no chain is in."""
    made = []
    for f, size in enumerate(records.columns.sizes):
        codes = batch.codes.clone()
        codes[..., f] = torch.randint(size, codes.shape[:-1], device=codes.device)
        made.append(records.decode(codes, batch.scores).flatten(2))
    return torch.cat(made) if made else batch.x


def _summed(exact: Residual, x: Tensor, weights: Tensor, b: int) -> Tensor:
    """Σ_n weights_kn u(x_n) of records x (N, width), (K, D), float64, a few records at a time."""
    size = exact.density.client.update_size
    total = weights.new_zeros(len(weights), size)
    step = max(1, ENTRIES // size)
    for part, own in zip(x.split(step), weights.split(step, 1), strict=True):
        total += own @ exact.update(part, b).materialise().double()
    return total


def stepped(columns: Columns | None, x: Tensor) -> Tensor:
    """How long a step is in each entry of records x (N, width), with its sign."""
    made = torch.ones(x.shape[1], dtype=torch.float64)
    for column in () if columns is None else columns.varying:
        if column.kind == "number":
            made[columns.starts[column.name]] = STEP  # type: ignore[union-attr]
        elif column.kind == "grid":
            values = column.rows()[: len(column.values), 0]
            made[columns.starts[column.name]] = (values[1:] - values[:-1]).median()  # type: ignore[union-attr]
    return torch.where(x == 1, -1.0, 1.0).to(x) * made.to(x)
