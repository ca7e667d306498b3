"""Finitely many states in a tree: each column depends on one other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak.errors import BadInput

MOST = 10_000  # records that are enumerated
BACK = 2.0  # rows that a column's own law weighs in a law given another column's state


@dataclass(frozen=True, eq=False)
class Forest:
    """p(c) = Π_f p(c_f | c_parent(f)) over the columns of one record (Chow & Liu 1968).

    parents  of each column, −1 of a root; sizes: its states; order: parents before children
    tables   log p(c_f = k | c_parent = m), one after the other, row by row; starts: where each begins
    """

    parents: Tensor
    sizes: Tensor
    order: tuple[int, ...]
    tables: Tensor
    starts: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Forest:
        return Forest(
            self.parents.to(device), self.sizes.to(device), self.order, self.tables.to(device, dtype),
            self.starts.to(device),
        )  # fmt: skip

    def log_prob(self, codes: Tensor) -> Tensor:
        """log p of codes (…, F), (…,)."""
        return self.log_prob_of(codes, slice(None))

    def log_prob_of(self, codes: Tensor, columns: Sequence[int] | slice) -> Tensor:
        """Σ over some columns of log p(c_f | c_parent), (…,)."""
        parents = self.parents[columns]
        above = codes[..., parents.clamp(min=0)] * (parents >= 0)
        return self.tables[self.starts[columns] + above * self.sizes[columns] + codes[..., columns]].sum(-1)

    def sample(self, shape: torch.Size) -> Tensor:
        """codes (*shape, F), by torch's generator."""
        return self.sample_below(
            torch.zeros(*shape, len(self.sizes), dtype=torch.long, device=self.tables.device), self.order
        )

    def sample_below(self, codes: Tensor, columns: Sequence[int]) -> Tensor:
        """codes (…, F) with some columns redrawn one after the other, each given the column that it depends on."""
        codes = codes.clone()
        for f in columns:
            codes[..., f] = drawn(self._table(f).exp().cumsum(1)[self._above(codes, f)])
        return codes

    def sample_pair(self, codes: Tensor, f: int) -> Tensor:
        """codes (…, F) with column f and the one it depends on redrawn: that one from p(c_p | all that it depends on
        and that depends on it but f), and f from p(c_f | c_p)."""
        parent = int(self.parents[f])
        rest = self._table(parent)[self._above(codes, parent)]
        for child in (self.parents == parent).nonzero().flatten().tolist():
            if child != f:
                rest = rest + self._table(child).mT[codes[..., child]]
        codes = codes.clone()
        codes[..., parent] = drawn(rest.softmax(-1).cumsum(-1))
        return self.sample_below(codes, [f])

    def marginals(self) -> dict[int, Tensor]:
        """p(c_f) of each column, (states,), float64."""
        made: dict[int, Tensor] = {}
        for f in self.order:
            table, parent = self._table(f).exp(), int(self.parents[f])
            made[f] = table[0] if parent < 0 else made[parent] @ table
        return made

    def _above(self, codes: Tensor, f: int) -> Tensor:
        """The row of each of codes (…, F) in the table of a column."""
        return codes[..., self.parents[f]] if self.parents[f] >= 0 else torch.zeros_like(codes[..., 0])

    def _table(self, f: int) -> Tensor:
        """log p(c_f = k | c_parent = m), (states of the parent, or 1, states of f), float64."""
        parent, size, start = int(self.parents[f]), int(self.sizes[f]), int(self.starts[f])
        rows = self.tables[start:][: size * (1 if parent < 0 else int(self.sizes[parent]))].reshape(-1, size)
        return rows.double()


def drawn(cumulative: Tensor) -> Tensor:
    """A state of each law, from its cumulative probabilities (…, states), by torch's generator."""
    u = torch.rand(cumulative.shape[:-1], dtype=cumulative.dtype, device=cumulative.device)
    return (cumulative < u[..., None] * cumulative[..., -1:]).sum(-1)


class States(TorchDistribution):
    """The codes of a batch of records, independent of each other: event shape (batch_size, F)."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True

    def __init__(self, forest: Forest, batch_size: int = 1, batch_shape: torch.Size = torch.Size()) -> None:
        self.forest, self.batch_size = forest, batch_size
        super().__init__(torch.Size(batch_shape), torch.Size([batch_size, len(forest.sizes)]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, int(self.forest.sizes.max()) - 1), 2)

    def expand(self, batch_shape: torch.Size, _instance: States | None = None) -> States:
        return States(self.forest, self.batch_size, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.forest.sample(torch.Size(sample_shape) + self.batch_shape + self.event_shape[:1])

    def log_prob(self, value: Tensor) -> Tensor:
        lp = self.forest.log_prob(value).sum(-1)
        return lp.expand(np.broadcast_shapes(lp.shape, self.batch_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        sizes = self.forest.sizes.tolist()
        count = math.prod(sizes) ** self.batch_size
        if count > MOST:
            raise BadInput(f"a batch of {self.batch_size} with {math.prod(sizes):.3g} states of a record's categories "
                           "and grids is too much to enumerate: take the inference gibbs, or map, which move through "
                           "them")  # fmt: skip
        each = itertools.product(*(range(n) for n in sizes * self.batch_size))
        grid = torch.tensor(list(each), device=self.forest.tables.device)
        grid = grid.reshape(count, *(1 for _ in self.batch_shape), self.batch_size, len(sizes))
        return grid.expand(count, *self.batch_shape, *self.event_shape) if expand else grid

    def neighbours(self, codes: Tensor) -> Tensor:
        """Every batch (M, batch_size, F) that differs from one (batch_size, F) in one cell."""
        near = []
        for b, f in itertools.product(range(self.batch_size), range(len(self.forest.sizes))):
            size = int(self.forest.sizes[f])
            others = codes.expand(size, *codes.shape).clone()
            others[:, b, f] = torch.arange(size, device=codes.device)
            near.append(others[others[:, b, f] != codes[b, f]])
        return torch.cat(near)


def fit_forest(codes: Tensor, positions: list[Tensor | None], sizes: tuple[int, ...], *, edges: bool = True) -> Forest:
    """The forest of public codes (N, F): the spanning one of the largest gains, each the log-density that an edge adds
    where every row is predicted by the others; columns that gain nothing stand alone.

    A column's own law gives the share of the rows whose state nobody else is in (Good & Turing) to all states alike, or
    on a grid to what is near; its law given another column's state takes that law as BACK further rows.

    Args:
        positions: where the states of a grid lie, (states,); None of categories. edges: False: columns are independent.
    """
    columns = len(sizes)
    own = [_own(codes[:, f], sizes[f], positions[f]) for f in range(columns)]
    parents = [-1] * columns
    order = list(range(columns))
    if edges and columns > 1:
        gains = [(_gain(codes, a, b, sizes, own), a, b) for a, b in itertools.combinations(range(columns), 2)]
        parents, order = _grown(sorted(gains, reverse=True), columns)
    tables, starts = [], []
    at = 0
    for f in range(columns):
        table = own[f][None]
        if parents[f] >= 0:
            joint = _table(codes, parents[f], f, sizes)
            table = (joint + BACK * own[f]) / (joint.sum(1, keepdim=True) + BACK)
        tables.append(table.log().flatten())
        starts.append(at)
        at += table.numel()
    return Forest(torch.tensor(parents), torch.tensor(sizes), tuple(order), torch.cat(tables), torch.tensor(starts))


def _own(codes: Tensor, size: int, positions: Tensor | None) -> Tensor:
    """The law of one column, (size,), float64."""
    counts = torch.bincount(codes, minlength=size).double()
    rows = counts.sum()
    unseen = float((counts == 1).sum().clamp(min=0.5) / (rows + 1))
    spread = torch.full((size,), 1 / size, dtype=torch.float64)
    if positions is not None and len(positions) > 1:
        seen = counts[: len(positions)]
        mean = (seen @ positions) / seen.sum().clamp(min=1)
        sd = ((seen @ (positions - mean).square()) / seen.sum().clamp(min=1)).sqrt()
        width = (sd * rows**-0.2).clamp(min=float((positions[1:] - positions[:-1]).min()))
        near = torch.exp(-0.5 * ((positions[:, None] - positions) / width).square())
        smooth = torch.zeros(size, dtype=torch.float64)
        smooth[: len(positions)] = near @ seen
        spread = 0.9 * smooth / smooth.sum().clamp(min=1e-300) + 0.1 * spread
    return (1 - unseen) * counts / rows + unseen * spread


def _table(codes: Tensor, a: int, b: int, sizes: tuple[int, ...]) -> Tensor:
    pairs = codes[:, a] * sizes[b] + codes[:, b]
    return torch.bincount(pairs, minlength=sizes[a] * sizes[b]).double().reshape(sizes[a], sizes[b])


def _gain(codes: Tensor, a: int, b: int, sizes: tuple[int, ...], own: list[Tensor]) -> float:
    """Nats that all rows gain by an edge between two columns, each row predicted by the others; the mean of both
    directions."""
    joint = _table(codes, a, b, sizes)
    return 0.5 * (_predicted(joint, own[b]) + _predicted(joint.mT, own[a]))


def _predicted(joint: Tensor, own: Tensor) -> float:
    """Σ over rows of log p(child | parent) − log p(child), with a row's own count left out of the first."""
    left_out = (joint - 1).clamp(min=0) + BACK * own
    given = left_out / ((joint.sum(1, keepdim=True) - 1).clamp(min=0) + BACK)
    return float((joint * (given.log() - own.log()))[joint > 0].sum())


def _grown(gains: list[tuple[float, int, int]], columns: int) -> tuple[list[int], list[int]]:
    """The parents of a maximal forest of the edges that gain, and an order with parents before children (Kruskal)."""
    group, beside = list(range(columns)), [cast(list[int], []) for _ in range(columns)]
    for gain, a, b in gains:
        if gain > 0 and group[a] != group[b]:
            beside[a].append(b)
            beside[b].append(a)
            group = [group[a] if g == group[b] else g for g in group]
    parents, order = [-1] * columns, cast(list[int], [])
    for root in range(columns):
        queue = [] if root in order else [root]
        while queue:
            f = queue.pop()
            order.append(f)
            for child in beside[f]:
                if child not in order:
                    parents[child] = f
                    queue.append(child)
    return parents, order
