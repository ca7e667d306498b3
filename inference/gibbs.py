"""Gibbs sampling from cell to cell: exact draws of records, whose categories are discrete and stay so.

A record is codes c (categories, grids) and scores s (real numbers), as the prior `records` has them. The records b of a
batch are visited in turn, in all chains at once, and in each

    c_bf | rest  ∝  p(c_bf, rest of the record) p(g | …)^β          enumerated: all states of a column in one batch
    two columns of which one depends on the other, and a column with all below it: drawn K times from the prior given
        the rest; one of the draws, or the old states, ∝ p(g | …)^β and what of p(records) they were not drawn by
    s_br | rest                                                     K candidates about a centre that is about s_br

Of a column with more than `most` states, the old one and a random choice of others are compared, which is exact, too.
For a real number a centre a ~ Normal(s_br, τ²) and candidates ~ Normal(a, τ²) are drawn, the old one among them, and
one is taken ∝ p(s_br | rest) p(g | …)^β: given a, the candidates and s_br have the same law but for that weight
(Tjelmeland 2004). τ is drawn anew each time, over many orders of magnitude. A number that may be missing comes and goes
with its code. No slope of the density is asked for: a network may have kinks.

It warms up as `smc` does, from the prior (β = 0) to the posterior (β = 1), in islands that are each resampled within
themselves (Del Moral et al. 2006); chains go on from there, and R-hat compares them: islands that ended in different
records do not agree.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplleak.client import Client
from pplleak.data.columns import Column
from pplleak.density import Density, Model, build
from pplleak.density.cells import Batch, Likelihood, Quadratic, Residual, Tried, likelihood
from pplleak.density.chains import keep
from pplleak.density.resampling import resample
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent

Record = tuple[Tensor, Tensor, Tensor]  # codes (C, F), scores (C, R) and x (C, width) of one record of every chain
KNOWN = {"codes", "scores"}
DECADES = 6.0  # over which τ is drawn, from the prior's own sd down
SHORT = (8, 8, 4, 4, 2, 2)  # moves on a surrogate between two looks at the likelihood, after all moves were made
KEEP = 0.5  # effective share of the chains that a step in temperature leaves


@dataclass(frozen=True, eq=False)
class Chains:
    """All chains: their records, log p(records), log p(g | records) up to a constant, (C,), and a common β."""

    batch: Batch
    prior: Tensor
    fit: Tensor
    beta: float


def declines(model: Model, observed: Observation, client: Client) -> str:
    """Why it does not take a model, "" where it does: it needs records, and known labels."""
    nodes = _nodes(model, client, observed)
    latents = {n for n, v in nodes.items() if v["type"] == "sample" and n not in ("x", "y", "g")}
    latents = {n for n in latents if not isinstance(nodes[n]["fn"], poutine.subsample_messenger._Subsample)}
    if not latents or latents - KNOWN or not all("records" in nodes[n]["infer"] for n in latents):
        return "gibbs moves through the cells of records: it takes a model whose prior is `records`, and a told sigma"
    if observed.labels is None:
        return "gibbs takes known labels: share them, or recover them"
    return ""


def _nodes(model: Model, client: Client, observed: Observation) -> dict[str, Any]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        return dict(poutine.trace(model).get_trace(client, observed.batch_size).nodes)


def opened(model: Model, client: Client, observed: Observation) -> tuple[Density, Any]:
    """The density with its codes as a site that is moved through, and the law of the records."""
    density = build(model, client, observed, moves=True)
    nodes = _nodes(model, client, observed)
    records = next(nodes[n]["infer"]["records"] for n in ("codes", "scores") if n in nodes)
    if "codes" in density.discrete:  # few enough to be summed out: others may, this one moves
        rest = {n: v for n, v in density.discrete.items() if n != "codes"}
        density = replace(density, discrete=rest, moved={**density.moved, "codes": nodes["codes"]["fn"]})
    return density, records


class Sweep:
    """One visit to every record, which leaves p(records) p(g | records)^β as it is.

    Of a client whose update is a sum over records, behind Gaussian noise, the moves are made on a quadratic surrogate
    of the likelihood, `inner` rounds of them in an order drawn anew, then a few at a time, and each end is accepted or
    refused by the true one (Liu 2001, section 9.4.3; the surrogate transition method: each move is reversible, and an
    order is as likely as its reverse). Otherwise every candidate is compared by the true likelihood.
    """

    def __init__(self, records: Any, fit: Likelihood, most: int, inner: int) -> None:
        self.records, self.fit, self.most, self.inner = records, fit, most, inner
        self.surrogates: list[Quadratic] = []
        self.accepted: list[float] = []
        forest = records.forest
        parents = [] if forest is None else forest.parents.tolist()
        self.below = [[k for k, p in enumerate(parents) if p == f] for f in range(len(parents))]
        self.moves = [functools.partial(self._column, f) for f in range(len(parents))]
        self.moves += [functools.partial(self._pair, f) for f, parent in enumerate(parents) if parent >= 0]
        self.moves += [functools.partial(self._number, r) for r in range(len(records.columns.real))]
        self.moves += [functools.partial(self._presence, r) for r, c in enumerate(records.columns.real) if c.missing]
        if trees := _subtrees(self.below):
            self.moves.append(lambda *record: self._subtree(trees[int(torch.randint(len(trees), ()))], *record))
        self.inverse = torch.linalg.inv(records.scale) if len(records.mean) else records.scale

    def refreshed(self, chains: Chains) -> None:
        """Make the surrogates about what the chains hold now: before the draws that are kept."""
        if isinstance(self.fit, Residual) and self.inner:
            batch = chains.batch
            self.surrogates = [Quadratic.about(self.fit, batch, b) for b in range(batch.x.shape[1])]

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
        return Chains(batch, self.prior(batch.codes, batch.scores).sum(1), fit, beta)

    def _moved(
        self, fit: Likelihood, beside: Tensor, batch: Batch, b: int, beta: float, record: Record, order: list[int]
    ) -> Record:
        """Some of the moves, one after the other."""
        for k in order:
            tried = self.moves[k](*record)
            logits = tried.weight if beta == 0 else tried.weight + beta * fit.at(beside, batch, b, tried)
            pick = (logits - torch.empty_like(logits).exponential_().log()).argmax(1)  # Gumbel
            at = torch.arange(len(pick), device=pick.device)
            record = (tried.codes[at, pick], tried.scores[at, pick], tried.x[at, pick])
        return record

    def _order(self) -> list[int]:
        order: list[int] = torch.randperm(len(self.moves)).tolist()
        return order

    def _proposed(self, beside: Tensor, batch: Batch, b: int, beta: float, old: Record) -> tuple[Record, Tensor]:
        """What the moves on the surrogate lead to, where it is accepted, and its true fit: first all of them, then a
        few at a time, which are accepted where all are not."""
        surrogate, true = self.surrogates[b].told(beside, b), self.fit.at(beside, batch, b, Tried.one(*old))[:, 0]
        orders = [[k for _ in range(self.inner) for k in self._order()]]
        orders += [torch.randint(len(self.moves), (n,)).tolist() for n in SHORT]
        height = surrogate.height(old[2])
        for order in orders:
            new = self._moved(surrogate, beside, batch, b, beta, old, order)
            fit, form = self.fit.at(beside, batch, b, Tried.one(*new))[:, 0], surrogate.height(new[2])
            accept = torch.rand_like(fit).log() < beta * (fit - true - form + height)
            self.accepted.append(float(accept.double().mean()))
            kept = [torch.where(accept.reshape(-1, 1), n, o) for o, n in zip(old, new, strict=True)]
            old = (kept[0], kept[1], kept[2])
            true, height = torch.where(accept, fit, true), torch.where(accept, form, height)
        return old, true

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
        entries = torch.cat([self._entries(columns.finite[f]) for f in moved])
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


def cooled(chains: Chains, islands: int) -> Chains:
    """The chains at the next β, resampled within their islands."""
    fits = chains.fit.unflatten(0, (islands, -1))

    def weights(beta: float) -> Tensor:
        return (beta - chains.beta) * fits

    def kept(beta: float) -> float:
        w = weights(beta).softmax(1)
        return float((1 / w.square().sum(1) / w.shape[1]).min())

    low, high = chains.beta, 1.0
    if kept(1.0) >= KEEP:
        low = 1.0
    else:
        for _ in range(60):  # bisection; on a log scale while β is small
            middle = math.sqrt(low * high) if low > 0 else high / 10
            low, high = (middle, high) if kept(middle) >= KEEP else (low, middle)
            if low > 0 and high / low < 1.01:
                break
        low = low or high
    log_w = weights(low)
    size = log_w.shape[1]
    ancestors = (resample(log_w) + size * torch.arange(islands, device=log_w.device)[:, None]).flatten()
    return Chains(chains.batch.picked(ancestors), chains.prior[ancestors], chains.fit[ancestors], low)


@torch.no_grad()
def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 8,
    islands: int = 4,
    particles: int = 32,
    draws: int = 300,
    moves: int = 2,
    settle: int = 15,
    most: int = 32,
    inner: int = 2,
    thin: int = 1,
) -> Posterior:
    """Draws from p(records | g). Ctrl-C keeps what has been drawn.

    Args:
        chains: all advanced in one batch; a multiple of the islands.
        islands: groups of particles that are independent of each other.
        particles: of all islands, during the warm-up; each island's chains are the first of its particles at the end.
        draws: draws a chain, after warm-up.
        moves: sweeps at each temperature of the warm-up.
        settle: sweeps at the end of it.
        most: candidates that a move compares.
        inner: rounds of moves on the surrogate between two looks at the likelihood; 0: every candidate is looked at.
        thin: sweeps a draw.
    """
    require_positive(
        chains=chains, islands=islands, particles=particles, draws=draws, moves=moves, most=most, thin=thin
    )
    if chains % islands or particles % islands or not islands <= chains <= particles:
        raise BadInput(f"{chains} chains of {particles} particles do not divide into {islands} islands: give multiples "
                       "of the islands, and as many particles as chains at least")  # fmt: skip
    if most < 2 or inner < 0 or settle < 0:
        raise BadInput("most must be at least 2 (the old state and another), inner and settle at least 0")
    if why := declines(model, observed, client):
        raise BadInput(why)
    pyro.set_rng_seed(seed)
    density, records = opened(model, client, observed)
    state = _begun(density, records, particles)
    sweep = Sweep(records, likelihood(density, state.batch), most, inner)
    one = Tried.one(state.batch.codes[:, 0], state.batch.scores[:, 0], state.batch.x[:, 0])
    state = replace(state, fit=sweep.fit.at(sweep.fit.beside(state.batch, 0), state.batch, 0, one)[:, 0])
    state, temperatures = _warm(state, sweep, islands, moves, settle, chains, progress)
    best = _Best()

    def chain(state: Chains) -> Iterator[dict[str, Tensor]]:
        while True:
            for _ in range(thin):
                state = sweep(state)
            best.see(state)
            yield {"codes": state.batch.codes, "scores": state.batch.scores, "lp": state.prior + state.fit}

    kept, interrupted = keep(chain(state), draws, progress)
    codes = {"codes": kept["codes"]} if records.forest is not None else {}
    return collect(
        density, kept["scores"].flatten(2), mode=best.scores.flatten(), kind="sampler", stats={"lp": kept["lp"]},
        curves={"temperature": torch.tensor(temperatures)}, reasons=interrupted, given=codes,
        best_given={n: best.codes[None] for n in codes},
        attrs={"temperatures": len(temperatures), "islands": islands,
               "accepted": sum(sweep.accepted) / len(sweep.accepted) if sweep.accepted else None},
    )  # fmt: skip


def _warm(
    state: Chains, sweep: Sweep, islands: int, moves: int, settle: int, chains: int, progress: ProgressBar
) -> tuple[Chains, list[float]]:
    """From the prior to the posterior, where so many chains go on; the surrogates stay as they are in the end."""
    temperatures, done = [0.0], 0
    ticks = iter(progress("warm-up", 100))
    while state.beta < 1:
        state = cooled(state, islands)
        temperatures.append(state.beta)
        for _ in range(moves):
            sweep.refreshed(state)
            state = sweep(state)
        reached = int(90 * (1 + math.log10(max(state.beta, 1e-12)) / 12))
        for _ in range(done, reached):
            next(ticks, None)
        done = max(done, reached)
    left = torch.arange(len(state.fit)).unflatten(0, (islands, -1))[:, : chains // islands].flatten()
    state = Chains(state.batch.picked(left), state.prior[left], state.fit[left], 1.0)
    sweep.refreshed(state)
    for k in range(settle):
        if 3 * k < 2 * settle:
            sweep.refreshed(state)
        state = sweep(state)
    for _ in ticks:
        pass
    sweep.accepted.clear()
    return state, temperatures


class _Best:
    """The records of the highest density that have been seen."""

    def __init__(self) -> None:
        self.height = -math.inf
        self.codes = self.scores = torch.zeros(0)

    def see(self, state: Chains) -> None:
        joint = state.prior + state.fit
        top = int(joint.argmax())
        if float(joint[top]) > self.height:
            self.height = float(joint[top])
            self.codes, self.scores = state.batch.codes[top], state.batch.scores[top]


def _begun(density: Density, records: Any, chains: int) -> Chains:
    """Records drawn from the prior."""
    size, client = density.observed.batch_size, density.client
    law = density.moved.get("codes")
    codes = torch.zeros(chains, size, 0, dtype=torch.long, device=client.device)
    codes = codes if law is None else law.sample(torch.Size([chains]))
    scores = torch.zeros(chains, size, 0, dtype=client.dtype, device=client.device)
    scores = records.given(codes).sample() if len(records.mean) else scores
    nothing = torch.zeros(chains, dtype=torch.float64, device=client.device)
    return Chains(Batch(codes, scores, records.decode(codes, scores).flatten(2)), nothing, nothing, 0.0)


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
