"""All numbers and grids of a record at once, drawn from the Gaussian that a quadratic surrogate says they have.

A gradient often tells the sum of two cells better than either: a year more of age, and a little less of income. Moves
of one cell at a time then creep. Of numeric entries e = x − x̂, beside the other cells as they are,

    log q(e) = hᵀe − ½ eᵀ A e,   A = β JᵀJ w² / σ² + I,   so  e ~ Normal(A⁻¹h, A⁻¹) = Normal(m, L Lᵀ)

and column after column e_i | e_<i ~ Normal(m_i + Σ_{j<i} L_ij z_j, L_ii²), z_j what e_j was drawn by. A grid's value is
one of finitely many, ∝ p(value) times that normal density; a number is drawn from it as it is. I stands for a prior, of
standardised columns. q of what was drawn is known exactly, and so are the weights p / q by which a candidate, or what
the chain holds, is taken (Andrieu, Lee and Vihola 2018, iterated sampling importance resampling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

JITTER = 1e-13  # of a precision's largest entry


class QuadraticForm(Protocol):
    """−½ dᵀ form d + slopes·d for d = x − x̂, of each chain or of all: at_ (C, width) is x̂, slopes (C, width), form
    (C, width, width)."""

    @property
    def at_(self) -> Tensor: ...

    @property
    def slopes(self) -> Tensor: ...

    @property
    def form(self) -> Tensor: ...


def product(form: Tensor, d: Tensor) -> Tensor:
    """form d, (C, width), of forms (C or 1, width, width) that are their own transposes: of one, a single product."""
    return d @ form[0] if len(form) == 1 else (form @ d[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class Form:
    """One that nothing else is known of."""

    at_: Tensor
    slopes: Tensor
    form: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """Grids, then numbers, of which no cell is ever missing.

    grids: their places among the columns with a code; laws: log p of each grid's values, and values: as x has them
    numbers: their places among the scores; entries: of all of them in x, in this order
    """

    grids: list[int]
    laws: list[Tensor]
    values: list[Tensor]
    numbers: list[int]
    entries: Tensor

    @staticmethod
    def of(records: Any) -> Block:
        columns, forest, like = records.columns, records.forest, records.mean
        names = [c.name for c in columns.finite]
        grids = [f for f, c in enumerate(columns.finite) if c.kind == "grid" and not c.missing]
        numbers = [r for r, c in enumerate(columns.real) if not c.missing]
        marginals = {} if forest is None else forest.marginals()
        entries = [columns.starts[names[f]] for f in grids] + [columns.starts[columns.real[r].name] for r in numbers]
        return Block(
            grids, [marginals[f].log() for f in grids],
            [columns.finite[f].rows()[:, 0].to(like.device) for f in grids], numbers,
            torch.tensor(entries, dtype=torch.long, device=like.device),
        )  # fmt: skip

    def drawn(self, records: Any, form: QuadraticForm, beta: float, most: int, codes: Tensor, scores: Tensor,
              x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Candidates codes (C, most, F) and scores (C, most, R), the first of each chain what it holds, and log q of
        them up to a constant of the chain, (C, most), float64."""
        at = form.at_[:, self.entries].double()
        mean, lower = self._gaussian(form, beta, x)
        tried, each = codes[:, None].repeat(1, most, 1), scores[:, None].repeat(1, most, 1)
        log_q, z = x.new_zeros(len(x), most, dtype=torch.float64), x.new_zeros(len(x), most, 0, dtype=torch.float64)
        for i, f in enumerate(self.grids):
            centre, sd = self._given(mean, lower, i, z), lower[:, i, i][:, None]
            away = (self.values[i] - at[:, i : i + 1, None] - centre[..., None]) / sd[..., None]
            law = self.laws[i] - 0.5 * away.square()
            law = law - law.amax(-1, keepdim=True)
            reached = law.exp().cumsum(-1)
            tried[:, 1:, f] = _one_of(reached)[:, 1:]
            picked = tried[..., f : f + 1]
            log_q = log_q + law.gather(-1, picked)[..., 0] - reached[..., -1].log()
            z = torch.cat([z, away.gather(-1, picked)], -1)
        for i, r in enumerate(self.numbers, len(self.grids)):
            centre, sd = self._given(mean, lower, i, z), lower[:, i, i][:, None]
            new = torch.randn_like(centre)
            value = (at[:, i : i + 1] + centre + sd * new).to(each)
            whole = torch.zeros_like(each)
            whole[..., r] = value
            each[:, 1:, r] = records.scores(whole)[:, 1:, r]
            value = records.numbers(each)[..., r].double()  # of what the chain holds, too
            new = (value - at[:, i : i + 1] - centre) / sd
            log_q = log_q - 0.5 * new.square() - sd.log() + records.slopes(each)[..., r].double().log()
            z = torch.cat([z, new[..., None]], -1)
        return tried, each, log_q

    def _gaussian(self, form: QuadraticForm, beta: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """m (C, n) and L (C, n, n) of the numeric entries, relative to x̂, beside the other cells of x (C, width)."""
        away = (x - form.at_).double()
        away[:, self.entries] = 0
        pull = beta * (form.slopes - product(form.form, away))[:, self.entries]
        pull = pull - form.at_[:, self.entries].double()
        precision = beta * form.form[:, self.entries[:, None], self.entries]
        one = torch.eye(len(self.entries), dtype=torch.float64, device=x.device)
        precision = precision + one * (1 + JITTER * precision.diagonal(dim1=1, dim2=2).amax(1)[:, None, None])
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        mean = (covariance @ pull[..., None])[..., 0]
        return mean, torch.linalg.cholesky(covariance)

    def _given(self, mean: Tensor, lower: Tensor, i: int, z: Tensor) -> Tensor:
        """The mean of entry i beside those before it, (C, K)."""
        return mean[:, i : i + 1] + (z @ lower[:, i, :i, None])[..., 0]


def _one_of(reached: Tensor) -> Tensor:
    """An index drawn from each law, of which the sums so far are given (…, values): the first that reaches a random
    share of the whole. One random number is enough, where Gumbel's trick takes as many as there are values."""
    at = reached[..., -1:] * (1 - torch.rand_like(reached[..., :1]))  # above 0: what has no probability is no index
    return torch.searchsorted(reached, at)[..., 0]
