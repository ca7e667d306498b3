"""Moves from sentence to sentence that leave p(sentences) p(g | sentences)^β as it is; `inference/isir.py` says which.

A move of one sentence costs one sentence's update beside the residual of the others (`pplleak.density.cells`); what a
sentence alone has cost once is remembered, since chains that know their sentence come back to it all the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pplleak.data.vocabulary import BEGIN, END, PAD, lengths
from pplleak.density.cells import Batch, Tried, likelihood
from pplleak.density.density import Density
from pplleak.priors.sentences import Sentences

REMEMBERED = 200_000  # sentences
SWAPS = 2  # of two tokens, a sentence and sweep


@dataclass(frozen=True, eq=False)
class State:
    """Chains: codes (C, B, length); log p(codes) and log p(g | codes), each (C,), float64; β."""

    codes: Tensor
    prior: Tensor
    fit: Tensor
    beta: float = 1.0

    @property
    def height(self) -> Tensor:
        return self.prior + self.beta * self.fit

    def at(self, beta: float) -> State:
        return replace(self, beta=beta)

    def picked(self, chains: Tensor) -> State:
        return State(self.codes[chains], self.prior[chains], self.fit[chains], self.beta)


@dataclass(eq=False)
class Accepted:
    """How many of the moves changed something."""

    taken: float = 0.0
    tried: int = 0

    def see(self, changed: Tensor) -> None:
        self.taken, self.tried = self.taken + float(changed.double().sum()), self.tried + len(changed)

    def clear(self) -> None:
        self.taken, self.tried = 0.0, 0

    @property
    def share(self) -> float | None:
        return self.taken / self.tried if self.tried else None


@dataclass(frozen=True, eq=False)
class Sweep:
    """All moves once: of a density whose law of sentences is `law`, with candidates from log q (length, V)."""

    density: Density
    law: Sentences
    q: Tensor
    count: int
    accepted: Accepted = field(default_factory=Accepted)
    memory: dict[bytes, float] = field(default_factory=dict)

    def __call__(self, state: State) -> State:
        batch = state.codes.shape[1]
        for b in range(batch):
            state = self._sentence(state, b)
        for b in range(batch if batch > 1 else 0):
            other = (b + 1 + int(torch.randint(batch - 1, ()))) % batch
            for tail in (False, True):
                state = self._exchanged(state, b, other, tail)
        prior, fit = self.heights(state.codes)  # differences of rounded numbers would add up
        return State(state.codes, prior, fit, state.beta)

    # -- of one sentence ---------------------------------------------------------------------------------------

    def _sentence(self, state: State, b: int) -> State:
        """Every token of sentence b, its length and its order."""
        beside = _Beside(self, state, b)
        for i in range(1, int(lengths(state.codes[:, b]).max()) + 1):
            state = self._token(state, beside, b, i)
        for _ in range(SWAPS):
            state = self._swapped(state, beside, b)
        return self._lengthened(state, beside, b)

    def _token(self, state: State, beside: _Beside, b: int, i: int) -> State:
        old = state.codes[:, b]
        there = lengths(old) >= i
        drawn = torch.multinomial(self.q[i].exp(), len(old) * self.count, replacement=True).view(len(old), -1)
        tokens = torch.cat([old[:, i : i + 1], drawn], 1)
        tried = old[:, None].repeat(1, tokens.shape[1], 1)
        tried[:, :, i] = torch.where(there[:, None], tokens, old[:, i : i + 1])  # a shorter sentence stays as it is
        fits, priors = beside.fits(tried), self.law.log_prob(tried)
        weight = priors + state.beta * fits - torch.where(there[:, None], self.q[i][tokens], 0.0)
        pick = torch.distributions.Categorical(logits=weight).sample()
        return self._taken(state, b, old, tried, fits, priors, pick)

    def _swapped(self, state: State, beside: _Beside, b: int) -> State:
        """Two tokens change places."""
        old, n = state.codes[:, b], lengths(state.codes[:, b])
        first, second = (1 + (torch.rand(len(n), device=n.device) * n).long().clamp(max=n - 1) for _ in range(2))
        new, rows = old.clone(), torch.arange(len(old), device=old.device)
        new[rows, first], new[rows, second] = old[rows, second], old[rows, first]
        return self._judged(state, beside, b, new, torch.zeros_like(state.prior))

    def _lengthened(self, state: State, beside: _Beside, b: int) -> State:
        """A last token comes or goes, each with probability ½: log of the proposals' ratio is ∓ log q."""
        old, n = state.codes[:, b], lengths(state.codes[:, b])
        length, rows = old.shape[1], torch.arange(len(old), device=old.device)
        comes = torch.rand(len(old), device=old.device) < 0.5
        at = (n + 1).clamp(max=length - 1)
        fresh = torch.multinomial(self.q[at].exp(), 1)[:, 0]
        longer, shorter = old.clone(), old.clone()
        can = n + 2 < length
        longer[rows, at] = torch.where(can, fresh, longer[rows, at])
        longer[rows, (n + 2).clamp(max=length - 1)] = torch.where(can, END, longer[rows, (n + 2).clamp(max=length - 1)])
        can_go = n > 1
        shorter[rows, n] = torch.where(can_go, END, old[rows, n])
        shorter[rows, at] = torch.where(can_go, PAD, old[rows, at])
        new = torch.where(comes[:, None], longer, shorter)
        q_new, q_old = self.q[at, fresh], self.q[n, old[rows, n]]
        ratio = torch.where(comes, torch.where(can, -q_new, 0.0), torch.where(can_go, q_old, 0.0))
        return self._judged(state, beside, b, new, ratio)

    def _judged(self, state: State, beside: _Beside, b: int, new: Tensor, ratio: Tensor) -> State:
        """Metropolis & Hastings: new sentences (C, length), accepted by the density's ratio times exp(ratio)."""
        old = state.codes[:, b]
        tried = torch.stack([old, new], 1)
        fits, priors = beside.fits(tried), self.law.log_prob(tried)
        heights = priors + state.beta * fits
        accept = torch.rand_like(ratio).log() < heights[:, 1] - heights[:, 0] + ratio
        return self._taken(state, b, old, tried, fits, priors, accept.long())

    def _taken(
        self, state: State, b: int, old: Tensor, tried: Tensor, fits: Tensor, priors: Tensor, pick: Tensor
    ) -> State:
        rows = torch.arange(len(old), device=old.device)
        codes = state.codes.clone()
        codes[:, b] = tried[rows, pick]
        self.accepted.see((codes[:, b] != old).any(1))
        prior = state.prior + priors[rows, pick] - self.law.log_prob(old)
        return State(codes, prior, state.fit + fits[rows, pick] - fits[:, 0], state.beta)

    # -- of two ------------------------------------------------------------------------------------------------

    def _exchanged(self, state: State, b: int, other: int, tail: bool) -> State:
        """Two sentences exchange their tokens at a position, or all that they have from there on."""
        shortest = lengths(state.codes[:, [b, other]]).amin(1)
        at = 1 + (torch.rand(len(shortest), device=shortest.device) * shortest).long().clamp(max=shortest - 1)
        place = torch.arange(state.codes.shape[2], device=at.device)
        moved = place >= at[:, None] if tail else place == at[:, None]
        codes = state.codes.clone()
        codes[:, b] = torch.where(moved, state.codes[:, other], state.codes[:, b])
        codes[:, other] = torch.where(moved, state.codes[:, b], state.codes[:, other])
        prior, fit = self.heights(codes)
        new = State(codes, prior, fit, state.beta)
        accept = torch.rand_like(prior).log() < new.height - state.height
        self.accepted.see(accept)
        mixed = torch.where(accept[:, None, None], codes, state.codes)
        priors, fits = torch.where(accept, prior, state.prior), torch.where(accept, fit, state.fit)
        return State(mixed, priors, fits, state.beta)

    def heights(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """log p(codes) and log p(g | codes) of whole batches (C, B, length), up to the constant of `_Beside`."""
        each, back = codes.unique(dim=0, return_inverse=True)  # chains in one state have one height, to the last digit
        nothing = torch.zeros(len(each), 0, dtype=self.density.client.dtype, device=codes.device)
        return self.law.log_prob(codes).sum(1), self.density.fixed({"codes": each}).terms(nothing)[1][back]


class _Beside:
    """log p(g | …) of candidates for one sentence of every chain, up to a constant of the chain."""

    def __init__(self, sweep: Sweep, state: State, b: int) -> None:
        self.b, self.memory, self.alone = b, sweep.memory, state.codes.shape[1] == 1
        self.batch = _batch(sweep, state.codes)
        self.law, self.judge = sweep.law, likelihood(sweep.density, self.batch)
        self.rest = self.judge.beside(self.batch, b)

    def fits(self, tried: Tensor) -> Tensor:
        """Of sentences (C, K, length), (C, K), float64."""
        if not self.alone:
            return self._computed(self.rest, self.batch, tried)
        keys = [ids.tobytes() for ids in tried.flatten(0, 1).cpu().numpy()]
        new = list(dict.fromkeys(k for k in keys if k not in self.memory))
        if new:
            if len(self.memory) > REMEMBERED:
                self.memory.clear()
                new = list(dict.fromkeys(keys))
            first = {k: i for i, k in reversed(list(enumerate(keys)))}
            own = tried.flatten(0, 1)[[first[k] for k in new]][None]
            picked = torch.zeros(1, dtype=torch.long, device=tried.device)
            values = self._computed(self.rest[:1], self.batch.picked(picked), own)[0]
            self.memory.update(zip(new, values.tolist(), strict=True))
        values = torch.tensor([self.memory[k] for k in keys], dtype=torch.float64, device=tried.device)
        return values.view(tried.shape[:2])

    def _computed(self, rest: Tensor, batch: Batch, tried: Tensor) -> Tensor:
        x = self.law.decode(tried)
        nothing = torch.zeros(*tried.shape[:2], 0, dtype=x.dtype, device=x.device)
        entries = torch.arange(x.shape[2], device=x.device)
        weight = nothing.new_zeros(tried.shape[:2], dtype=torch.float64)
        return self.judge.at(rest, batch, self.b, Tried(tried, nothing, x, batch.x[:, self.b], entries, weight))


def _batch(sweep: Sweep, codes: Tensor) -> Batch:
    x = sweep.law.decode(codes)
    return Batch(codes, torch.zeros(*codes.shape[:2], 0, dtype=x.dtype, device=x.device), x)


def begun(sweep: Sweep, chains: int) -> State:
    """Sentences of q's own tokens, whose lengths are the prior's."""
    client, length = sweep.density.client, sweep.law.input_shape[0]
    size = sweep.density.observed.batch_size
    n = torch.multinomial(sweep.law.log_length.exp(), chains * size, replacement=True).view(chains, size, 1)
    codes = torch.multinomial(sweep.q.exp(), chains * size, replacement=True).mT.reshape(chains, size, length)
    place = torch.arange(length, device=client.device)
    codes = torch.where(place == 0, BEGIN, torch.where(place == n + 1, END, torch.where(place > n, PAD, codes)))
    prior, fit = sweep.heights(codes)
    return State(codes, prior, fit)
