"""Moves from cell to cell of records, each of which leaves p(records) p(g | records)^β as it is.

`pplleak.inference.gibbs` says which there are, and why they are exact. A move takes a record of every chain and offers
candidates with the weight of what they were not drawn by (`Tried`); `Sweep` compares them and takes one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pplleak.data.columns import Column
from pplleak.density.cell_blocks import Block
from pplleak.density.cell_numbers import Numbers
from pplleak.density.cell_surrogates import Quadratic
from pplleak.density.cells import Batch, Likelihood, Residual, Tried

Record = tuple[Tensor, Tensor, Tensor]  # codes (C, F), scores (C, R) and x (C, width) of one record of every chain
DECADES = 6.0  # over which the width of a number's candidates is drawn, from the prior's own sd down
BLOCK = -1  # in an order: the move of all numbers at once
TRUE = 4  # moves by the true likelihood after those on a surrogate
SHORT = (8, 8, 4, 4, 2, 2)  # moves on a surrogate between two looks at the likelihood, after all moves were made


@dataclass(frozen=True, eq=False)
class Chains:
    """All chains: their records, log p(records), log p(g | records) up to a constant, (C,), and a common β."""

    batch: Batch
    prior: Tensor
    fit: Tensor
    beta: float

    @property
    def height(self) -> Tensor:
        """log p(records, g) up to a constant, (C,)."""
        return self.prior + self.fit

    def picked(self, chains: Tensor, beta: float) -> Chains:
        return Chains(self.batch.picked(chains), self.prior[chains], self.fit[chains], beta)

    def taking(self, accept: Tensor, other: Chains) -> Chains:
        """The other's where a chain accepts it, (C,)."""
        old, new, each = self.batch, other.batch, accept.reshape(-1, 1, 1)
        codes, scores, x = (torch.where(each, getattr(new, n), getattr(old, n)) for n in ("codes", "scores", "x"))
        prior, fit = torch.where(accept, other.prior, self.prior), torch.where(accept, other.fit, self.fit)
        return Chains(Batch(codes, scores, x), prior, fit, self.beta)


class Sweep:
    """One visit to every record, which leaves p(records) p(g | records)^β as it is.

    Of a client whose update is a sum over records, behind Gaussian noise, the moves are made on a quadratic surrogate
    of the likelihood, `inner` rounds of them in an order drawn anew, then a few at a time, and each end is accepted or
    refused by the true one (Liu 2001, section 9.4.3; the surrogate transition method: each move is reversible, and an
    order is as likely as its reverse). Otherwise every candidate is compared by the true likelihood. A `greedy` one
    takes the best of each move's candidates, the old state among them, instead of drawing one (Besag 1986).
    """

    def __init__(self, records: Any, fit: Likelihood, most: int, inner: int, greedy: bool = False) -> None:
        self.records, self.fit, self.most, self.inner, self.greedy = records, fit, most, inner, greedy
        self.surrogates: list[Quadratic] = []
        self.now: Quadratic | None = None  # the surrogate of the record that is moved
        self.numbers: Numbers | None = None  # those of all records, moved at once at the end of a visit
        self.accepted: list[float] = []
        self.seen: list[Tensor] | None = None  # records that surrogates are fitted to
        forest = records.forest
        parents = [] if forest is None else forest.parents.tolist()
        self.below = [[k for k, p in enumerate(parents) if p == f] for f in range(len(parents))]
        self.moves: list[Callable[..., Tried]] = [functools.partial(self._column, f) for f in range(len(parents))]
        self.moves += [functools.partial(self._pair, f) for f, parent in enumerate(parents) if parent >= 0]
        self.moves += [functools.partial(self._number, r) for r in range(len(records.columns.real))]
        self.moves += [functools.partial(self._presence, r) for r, c in enumerate(records.columns.real) if c.missing]
        if trees := _subtrees(self.below):
            self.moves.append(lambda *record: self._subtree(trees[int(torch.randint(len(trees), ()))], *record))
        self.block = Block.of(records)
        self.short: tuple[int, ...] = SHORT
        self.blocks = 2 * (len(self.block.entries) > 1)  # moves of all numbers at once, in an order
        self.inverse = torch.linalg.inv(records.scale) if len(records.mean) else records.scale

    def refreshed(self, chains: Chains) -> None:
        """Make the surrogates about what the chains hold now: before the draws that are kept."""
        if isinstance(self.fit, Residual) and self.inner:
            batch = chains.batch
            self.surrogates = [Quadratic.about(self.fit, batch, b) for b in range(batch.x.shape[1])]

    def give_up(self) -> None:
        """No surrogates from here on: every candidate is compared by the likelihood."""
        self.inner, self.surrogates = 0, []

    def __call__(self, chains: Chains) -> Chains:
        batch, beta = chains.batch, chains.beta
        last = batch.x.shape[1] - 1
        beside = self.fit.beside(batch, 0)
        fit = chains.fit
        for b in range(last + 1):
            old = (batch.codes[:, b], batch.scores[:, b], batch.x[:, b])
            if self.surrogates:
                new, fit = self._proposed(beside, batch, b, beta, old)
            else:
                new = self._moved(self.fit, beside, batch, b, beta, old, self._order())
            batch = batch.with_record(b, *new)
            if b < last:
                beside = self.fit.after(beside, batch, b)
        if not self.surrogates:
            fit = self.fit.at(beside, batch, last, Tried.one(*new))[:, 0]
        chains = Chains(batch, self.prior(batch.codes, batch.scores).sum(1), fit, beta)
        return chains if self.numbers is None else self._all_numbers(self.numbers, chains)

    def _all_numbers(self, numbers: Numbers, chains: Chains) -> Chains:
        """The numbers of all records at once, a few times (`pplleak.density.cell_numbers`)."""
        mean = numbers.mean(chains.batch)
        for rho in numbers.steps:
            batch, ratio = numbers.drawn(chains.batch, mean, rho)
            new = self.begun(batch, chains.beta)
            gain = new.prior - chains.prior + chains.beta * (new.fit - chains.fit)
            chains = chains.taking(~refused(gain + ratio), new)
        return chains

    def _moved(
        self, fit: Likelihood, beside: Tensor, batch: Batch, b: int, beta: float, record: Record, order: list[int]
    ) -> Record:
        """Some of the moves, one after the other."""
        for k in order:
            tried = self._block(beta, *record) if k == BLOCK else self.moves[k](*record)
            weight = self.prior(tried.codes, tried.scores) if self.greedy else tried.weight
            logits = weight if beta == 0 else weight + beta * fit.at(beside, batch, b, tried)
            noise = 0.0 if self.greedy else -torch.empty_like(logits).exponential_().log()  # Gumbel
            pick = (logits + noise).argmax(1)
            at = torch.arange(len(pick), device=pick.device)
            record = (tried.codes[at, pick], tried.scores[at, pick], tried.x[at, pick])
        return record

    def _order(self) -> list[int]:
        """All moves, in an order drawn anew; with a surrogate, those of all numbers at once among them."""
        which = [*range(len(self.moves)), *([BLOCK] * self.blocks if self.surrogates else [])]
        return [which[k] for k in torch.randperm(len(which)).tolist()]

    def _few(self, count: int) -> list[int]:
        return [self._order()[0] for _ in range(count)]

    def _proposed(self, beside: Tensor, batch: Batch, b: int, beta: float, old: Record) -> tuple[Record, Tensor]:
        """What the moves on the surrogate lead to, where it is accepted, and its true fit: first all of them, then a
        few at a time, which are accepted where all are not."""
        self.now = surrogate = self.surrogates[b].told(beside, b)
        true = self.fit.at(beside, batch, b, Tried.one(*old))[:, 0]
        orders = [[k for _ in range(self.inner) for k in self._order()]]
        orders += [self._few(n) for n in self.short]
        height = surrogate.height(old[2])
        for order in orders:
            new = self._moved(surrogate, beside, batch, b, beta, old, order)
            if self.seen is not None:
                self.seen.append(batch.with_record(b, *new).x)
            fit, form = self.fit.at(beside, batch, b, Tried.one(*new))[:, 0], surrogate.height(new[2])
            accept = ~refused(beta * (fit - true - form + height))
            self.accepted.append(float(accept.double().mean()))
            kept = [torch.where(accept.reshape(-1, 1), n, o) for o, n in zip(old, new, strict=True)]
            old = (kept[0], kept[1], kept[2])
            true, height = torch.where(accept, fit, true), torch.where(accept, form, height)
        # where the surrogate is far off, it refuses for long
        by_truth = [BLOCK] * self.blocks + self._few(TRUE) if self.short else self._few(min(1, TRUE))
        old = self._moved(self.fit, beside, batch, b, beta, old, by_truth)
        return old, self.fit.at(beside, batch, b, Tried.one(*old))[:, 0]

    def begun(self, batch: Batch, beta: float = 0.0) -> Chains:
        """Chains that hold a batch each."""
        one = Tried.one(batch.codes[:, 0], batch.scores[:, 0], batch.x[:, 0])
        fit = self.fit.at(self.fit.beside(batch, 0), batch, 0, one)[:, 0]
        return Chains(batch, self.prior(batch.codes, batch.scores).sum(1), fit, beta)

    def prior(self, codes: Tensor, scores: Tensor) -> Tensor:
        """log p of records codes (…, F) and scores (…, R) up to a constant, (…,), float64."""
        total = torch.zeros(codes.shape[:-1], dtype=torch.float64, device=codes.device)
        if self.records.forest is not None:
            total = total + self.records.forest.log_prob(codes).double()
        return total + self._scores(codes, scores)

    def _scores(self, codes: Tensor, scores: Tensor) -> Tensor:
        if not scores.shape[-1]:
            return torch.zeros(codes.shape[:-1], dtype=torch.float64, device=codes.device)
        columns = self.records.columns
        mean = self.records.mean
        if columns.finite:
            mean = mean + self.records.shifts[codes + columns.offsets.to(codes.device)].sum(-2)
        return -0.5 * ((scores - mean) @ self.inverse.mT).double().square().sum(-1)

    def _column(self, f: int, codes: Tensor, scores: Tensor, x: Tensor) -> Tried:
        """All states of a column, or the old one and a random choice of others."""
        size, old = self.records.columns.sizes[f], codes[:, f]
        if size <= self.most:
            states = torch.arange(size, device=codes.device).expand(len(codes), size)
        else:
            others = torch.rand(len(codes), size - 1, device=codes.device).topk(self.most - 1, 1).indices
            states = torch.cat([old[:, None], others + (others >= old[:, None])], 1)
        tried = codes[:, None].repeat(1, states.shape[1], 1)
        tried[:, :, f] = states
        weight = self.records.forest.log_prob_of(tried, [f, *self.below[f]]).double()
        return self._tried(codes, scores, x, tried, [f], weight)

    def _pair(self, f: int, codes: Tensor, scores: Tensor, x: Tensor) -> Tried:
        """Draws of a column and of the one it depends on from their prior, given all others but what depends on f, and
        the old ones: states that go together are changed together."""
        forest = self.records.forest
        old = codes[:, None].expand(-1, self.most, -1)
        tried = torch.cat([old[:, :1], forest.sample_pair(old[:, 1:], f)], 1)
        weight = forest.log_prob_of(tried, self.below[f]).double()
        return self._tried(codes, scores, x, tried, [f, int(forest.parents[f])], weight)

    def _subtree(self, inside: list[int], codes: Tensor, scores: Tensor, x: Tensor) -> Tried:
        """Draws of a column and of all below it from their prior, given the rest, and the old ones."""
        old = codes[:, None].expand(-1, self.most, -1)
        tried = torch.cat([old[:, :1], self.records.forest.sample_below(old[:, 1:], inside)], 1)
        return self._tried(codes, scores, x, tried, inside, scores.new_zeros(tried.shape[:2]).double())

    def _tried(
        self, codes: Tensor, scores: Tensor, x: Tensor, tried: Tensor, moved: list[int], weight: Tensor
    ) -> Tried:
        """Candidates (C, K, F) that differ from codes (C, F) in the columns `moved`, encoded, with the weight of their
        scores added."""
        columns, rows = self.records.columns, self.records.columns.rows.to(x)
        each = scores[:, None].expand(-1, tried.shape[1], -1)
        if any(columns.finite[f].kind == "number" for f in moved):  # one that comes or goes brings its number
            encoded = self.records.decode(tried, each).flatten(2)
        else:
            encoded = x[:, None]
            for f in moved:
                start = columns.offsets[f]
                encoded = encoded + (rows[start + tried[..., f]] - rows[start + codes[:, f]][:, None])
        entries = torch.cat([self._entries(columns.finite[f]) for f in moved]).sort().values
        return Tried(tried, each, encoded, x, entries.to(x.device), weight + self._scores(tried, each))

    def _entries(self, column: Column) -> Tensor:
        return torch.arange(column.width) + self.records.columns.starts[column.name]

    def _number(self, r: int, codes: Tensor, scores: Tensor, x: Tensor) -> Tried:
        """Candidates for one score about a centre that is about it, and the old one."""
        columns = self.records.columns
        width = self.records.scale.norm(dim=1)[r] * 10 ** (0.5 - (DECADES + 0.5) * torch.rand(len(scores), 1).to(x))
        old = scores[:, r : r + 1]
        centre = old + width * torch.randn_like(old)
        near = centre + width * torch.randn(len(scores), self.most - 1, dtype=x.dtype, device=x.device)
        each = scores[:, None].repeat(1, self.most, 1)
        each[:, :, r] = torch.cat([old, near], 1)
        tried, encoded = codes[:, None].expand(-1, self.most, -1), x[:, None].repeat(1, self.most, 1)
        encoded[:, :, columns.places[r]] = self.records.numbers(each)[..., r] * columns.present(tried)[..., r]
        return Tried(tried, each, encoded, x, columns.places[r : r + 1].to(x.device), self._scores(tried, each))

    def _block(self, beta: float, codes: Tensor, scores: Tensor, x: Tensor) -> Tried:
        """All grids and numbers together, from the Gaussian of the surrogate (`pplleak.density.cell_blocks`)."""
        assert self.now is not None
        tried, each, log_q = self.block.drawn(self.records, self.now, beta, self.most, codes, scores, x)
        weight = self._scores(tried, each) - log_q
        if self.block.grids:
            moved = sorted({*self.block.grids, *(k for f in self.block.grids for k in self.below[f])})
            weight = weight + self.records.forest.log_prob_of(tried, moved).double()
        encoded = self.records.decode(tried, each).flatten(2)
        return Tried(tried, each, encoded, x, self.block.entries.sort().values, weight)

    def _presence(self, r: int, codes: Tensor, scores: Tensor, x: Tensor) -> Tried:
        """Whether a number is there, and its score, together: the code by the throw of a coin, the score from its prior
        given the rest; and the old ones."""
        columns, most = self.records.columns, self.most
        f = [c.name for c in columns.finite].index(columns.real[r].name)
        tried, each = codes[:, None].repeat(1, most, 1), scores[:, None].repeat(1, most, 1)
        tried[:, 1:, f] = torch.randint(2, (len(codes), most - 1), device=codes.device)
        mean = self.records.mean + self.records.shifts[tried + columns.offsets.to(codes.device)].sum(-2)
        precision = self.inverse.mT @ self.inverse
        away = (each - mean) @ precision[r] - (each - mean)[..., r] * precision[r, r]
        centre, sd = mean[..., r] - away / precision[r, r], precision[r, r] ** -0.5
        each[:, 1:, r] = (centre + sd * torch.randn_like(centre))[:, 1:]
        drawn_by = -0.5 * ((each[..., r] - centre) / sd).square()
        weight = self.records.forest.log_prob_of(tried, [f, *self.below[f]]).double() - drawn_by
        encoded = self.records.decode(tried, each).flatten(2)
        entries = self._entries(columns.finite[f]).to(x.device)
        return Tried(tried, each, encoded, x, entries, weight + self._scores(tried, each))


def refused(log_ratio: Tensor) -> Tensor:
    """By Metropolis' rule; what is no number is refused."""
    return ~(torch.rand_like(log_ratio).log() < log_ratio)


def _subtrees(below: list[list[int]]) -> list[list[int]]:
    """Every column that others depend on, with all below it, parents first."""
    made = []
    for root in range(len(below)):
        inside = [root]
        for f in inside:
            inside += below[f]
        if len(inside) > 1:
            made.append(inside)
    return made
