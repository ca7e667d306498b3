"""Records of a table: a tree over categories and grids, a Gaussian copula over real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplleak import data
from pplleak.data.columns import Column, Columns
from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._tree import Forest, States, fit_forest

KNOTS = 201  # of a number's quantile function
REGRESSED = 10_000  # rows, taken evenly, that the scores are regressed on
RIDGE = 10.0
BEYOND = 3.0  # scores by which the quantile function is known beyond its rows, before it goes on in a straight line


@dataclass(frozen=True, eq=False)
class Records:
    """A record is its codes c (F,), of categories and grids, and the normal scores s (R,) of its real numbers:

        c ~ Π_f p(c_f | c_parent(f));    s | c ~ Normal(mean + Σ_f shifts[c_f], L Lᵀ);    number_r = Q_r(Φ(s_r))

    with Q_r the quantile function of the public rows, linear between knots (and beyond them): without codes a Gaussian
    copula. x, what the network takes, is the record's encoding (`Columns.encode`).

    knots (K,) in scores, quantiles (R, K); mean (R,); shifts (Σ states, R); scale (R, R), the lower triangle L
    """

    columns: Columns
    forest: Forest | None
    knots: Tensor
    quantiles: Tensor
    mean: Tensor
    shifts: Tensor
    scale: Tensor
    input_shape: tuple[int, ...]

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites `codes` and `scores`, those that a table has, and x (*chains, batch_size, *input_shape).

        They carry this law (`infer["records"]`), for an inference that moves from cell to cell.
        """
        codes = torch.zeros(batch_size, 0, dtype=torch.long, device=self.mean.device)
        scores = self.mean.new_zeros(batch_size, 0)
        if self.forest is not None:
            codes = pyro.sample("codes", States(self.forest, batch_size), infer={"records": self})
        if len(self.mean):
            scores = pyro.sample("scores", self.given(codes), infer={"records": self})
        x: Tensor = pyro.deterministic("x", self.decode(codes, scores))
        return x

    def given(self, codes: Tensor) -> dist.TorchDistribution:
        """p(s | c) of codes (*chains, batch, F), event shape (batch, R)."""
        mean = self.mean + self.shifts[codes + self.columns.offsets.to(codes.device)].sum(-2)
        return dist.MultivariateNormal(mean, scale_tril=self.scale).to_event(1)

    def decode(self, codes: Tensor, scores: Tensor) -> Tensor:
        """codes (*chains, batch, F) and scores (*chains, batch, R) -> x (*chains, batch, *input_shape)."""
        numbers = self.numbers(scores.to(self.mean.dtype))
        lead = np.broadcast_shapes(codes.shape[:-1], numbers.shape[:-1])
        codes, numbers = codes.expand(*lead, codes.shape[-1]), numbers.expand(*lead, numbers.shape[-1])
        return self.columns.encode(codes, numbers).unflatten(-1, self.input_shape)

    def numbers(self, scores: Tensor) -> Tensor:
        """s (…, R) -> the numbers, standardised, (…, R)."""
        if not scores.shape[-1]:
            return scores
        begin, low, slope = self._piece(scores)
        return low + slope * (scores - begin)

    def slopes(self, scores: Tensor) -> Tensor:
        """dn/ds of `numbers` at s (…, R), (…, R)."""
        return self._piece(scores)[2]

    def _piece(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the straight piece that each score is on: the score and the number that it begins at, and its slope."""
        right = torch.bucketize(scores.detach().contiguous(), self.knots).clamp(1, len(self.knots) - 1)
        column = torch.arange(scores.shape[-1], device=scores.device)
        low, high = self.quantiles[column, right - 1], self.quantiles[column, right]
        begin, end = self.knots[right - 1], self.knots[right]
        return begin, low, (high - low) / (end - begin)

    def scores(self, numbers: Tensor) -> Tensor:
        """The inverse of `numbers`."""
        made = []
        for r in range(numbers.shape[-1]):
            v, quantiles = numbers[..., r].contiguous(), self.quantiles[r].contiguous()
            right = torch.bucketize(v, quantiles).clamp(1, len(self.knots) - 1)
            part = (v - quantiles[right - 1]) / (quantiles[right] - quantiles[right - 1])
            made.append(self.knots[right - 1] + part * (self.knots[right] - self.knots[right - 1]))
        return torch.stack(made, -1) if made else numbers

    def log_prob(self, x: Tensor) -> Tensor:
        """log p of records x (N, *input_shape): of their codes, and of the scores of their numbers; (N,)."""
        codes, numbers = self.columns.decode(x.flatten(1).to(self.mean.dtype))
        total = x.new_zeros(len(x)).to(self.mean.dtype)
        if self.forest is not None:
            total = total + self.forest.log_prob(codes)
        if len(self.mean):
            total = total + self.given(codes[:, None]).log_prob(self.scores(numbers)[:, None])
        return total


def prior(like: Like, *, reference: str | Tensor = "digits", tree: bool = True, floor: float = 0.02) -> Records:
    """The law of public records. Data that are no table are taken for records of real numbers, one a pixel.

    Args:
        reference: the public rows the prior is fitted to: a name or a file of `pplleak.data`, or a tensor of them,
            encoded.
        tree: columns depend on each other; False: all are independent.
        floor: slope, in standard deviations a score, that the quantiles of a number have at least.
    """
    rows = data.reference(reference, like.input_shape)
    columns: Columns | None = getattr(like, "columns", None)
    return fit_records(rows, columns, tree=tree, floor=floor, dtype=like.dtype, device=like.device)


@lru_cache(maxsize=8)  # models call this at every trace; a tensor's hash is its identity
def fit_records(
    rows: Tensor,
    columns: Columns | None = None,
    *,
    tree: bool = True,
    floor: float = 0.02,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Records:
    """The law of public rows (N, *input_shape), encoded as `columns` says; None takes each entry for a number.

    The tree is `fit_forest`'s. A score is the normal quantile of a number's rank; scores are regressed on the codes
    with a ridge, and what is left has the covariance L Lᵀ.
    """
    require_positive(floor=floor)
    if len(rows) < 2:
        raise BadInput(f"a prior of records needs at least 2 rows to be fitted to, got {len(rows)}")
    shape, place = tuple(rows.shape[1:]), torch.device("cpu") if device is None else device
    flat = rows.detach().flatten(1).double().cpu()
    if columns is None:
        columns = Columns(tuple(Column(f"entry {k}", "number") for k in range(flat.shape[1])))
    codes, numbers = columns.decode(flat)
    forest = None
    if columns.finite:
        grids = [torch.tensor(c.values, dtype=torch.float64) if c.kind == "grid" else None for c in columns.finite]
        forest = fit_forest(codes, grids, columns.sizes, edges=tree).to(place, dtype)
    knots, quantiles = _quantiles(numbers, columns.present(codes), floor)
    made = Records(columns, forest, knots, quantiles, numbers.new_zeros(0), numbers.new_zeros(0), numbers, shape)
    scores = torch.where(columns.present(codes), made.scores(numbers), 0.0)
    mean, shifts, scale = _regressed(scores, codes + columns.offsets, columns.rows, tree, floor)
    knots, quantiles, mean, shifts, scale = (t.to(place, dtype) for t in (knots, quantiles, mean, shifts, scale))
    return Records(columns, forest, knots, quantiles, mean, shifts, scale, shape)


def _quantiles(numbers: Tensor, there: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Knots in scores, (K,), and the quantiles of each number there, (R, K), growing by `floor` a score at least; the
    outermost tenth goes on at its own slope beyond the rows that were seen."""
    count = min(KNOTS, max(2, len(numbers)))
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    inner = torch.special.ndtri(levels)
    tenth = max(1, count // 10)
    knots = torch.cat([inner[:1] - BEYOND, inner, inner[-1:] + BEYOND])
    made = []
    for r in range(numbers.shape[1]):
        seen = numbers[there[:, r], r]
        quantiles = torch.quantile(seen, levels) if len(seen) else torch.zeros_like(levels)
        quantiles = quantiles + floor * inner
        down = (quantiles[tenth] - quantiles[0]) / (inner[tenth] - inner[0])
        up = (quantiles[-1] - quantiles[-1 - tenth]) / (inner[-1] - inner[-1 - tenth])
        made.append(torch.cat([quantiles[:1] - BEYOND * down, quantiles, quantiles[-1:] + BEYOND * up]))
    return knots, torch.stack(made) if made else numbers.new_zeros(0, len(knots))


def _regressed(scores: Tensor, states: Tensor, rows: Tensor, tree: bool, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the scores, what each state adds to it (linear in a state's encoding, `rows`), and the Cholesky
    factor of what is left."""
    count, width = scores.shape
    mean = scores.mean(0)
    shifts = scores.new_zeros(len(rows), width)
    rest = scores - mean
    if width and len(rows) and tree:
        picks = torch.linspace(0, count - 1, min(count, REGRESSED)).long()
        design = rows[states[picks]].sum(1)
        gram = design.mT @ design + RIDGE * torch.eye(rows.shape[1], dtype=torch.float64)
        shifts = rows @ torch.linalg.solve(gram, design.mT @ rest[picks])
        rest = rest - shifts[states].sum(1)
    covariance = rest.mT @ rest / max(count, 1) + floor**2 * torch.eye(width, dtype=torch.float64)
    covariance = covariance if tree else covariance.diagonal().diag()
    return mean, shifts, torch.linalg.cholesky(covariance) if width else covariance
