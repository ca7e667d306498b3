"""log p(g | records) of many candidates for one record of a batch, each chain beside its own other records.

A client that averages over its batch shares u = Σ_b w_b u_b. Beside a residual r = g − Σ_{b'≠b} w_b' u_b', the same for
all candidates, Gaussian noise needs an inner product and a norm of one record's update alone:

    log p(g | …) = −(‖r‖² − 2 w_b ⟨r, u_b⟩ + w_b² ‖u_b‖²) / 2σ² + constant

so that a candidate costs one record's update, and not a batch's (`Residual`). `Whole` is the slow, obvious form, for
any client and channel: every candidate's batch in full. `pplleak.density.cell_surrogates` has approximations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from pplleak.channels.gaussian import Gaussian
from pplleak.client.entries import Entries, Lookup
from pplleak.client.factors import Factor
from pplleak.client.loss import get
from pplleak.client.update import LazyUpdate, Update
from pplleak.density.density import Density

ENTRIES = 2**24  # of materialised updates at a time


@dataclass(frozen=True, eq=False)
class Batch:
    """What all chains hold: codes (C, B, F) and scores (C, B, R) of their records, encoded as x (C, B, width)."""

    codes: Tensor
    scores: Tensor
    x: Tensor

    def with_record(self, b: int, codes: Tensor, scores: Tensor, x: Tensor) -> Batch:
        """The same with other records b, (C, …)."""
        parts = [t.clone() for t in (self.codes, self.scores, self.x)]
        for part, own in zip(parts, (codes, scores, x), strict=True):
            part[:, b] = own
        return Batch(*parts)

    def picked(self, chains: Tensor) -> Batch:
        return Batch(self.codes[chains], self.scores[chains], self.x[chains])


@dataclass(frozen=True, eq=False)
class Tried:
    """Candidates for one record of every chain: codes (C, K, F), scores (C, K, R), encoded as x (C, K, width), which
    differ from what the chains hold, `old` (C, width), in `entries` alone, in growing order; weight (C, K): what of
    log p(records) they were not drawn by."""

    codes: Tensor
    scores: Tensor
    x: Tensor
    old: Tensor
    entries: Tensor
    weight: Tensor

    @staticmethod
    def one(codes: Tensor, scores: Tensor, x: Tensor) -> Tried:
        """One candidate a chain, (C, …)."""
        nothing = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        return Tried(codes[:, None], scores[:, None], x[:, None], x, torch.arange(x.shape[1], device=x.device), nothing)


class Likelihood(Protocol):
    """log p(g | …) up to a constant."""

    def beside(self, batch: Batch, b: int) -> Tensor:
        """What the candidates for record b are compared with: one row a chain."""
        ...

    def after(self, beside: Tensor, batch: Batch, b: int) -> Tensor:
        """The same of the record that follows b in turn, from that of b."""
        ...

    def at(self, beside: Tensor, batch: Batch, b: int, tried: Tried) -> Tensor:
        """(C, K), float64."""
        ...


def likelihood(density: Density, batch: Batch) -> Likelihood:
    """The cheapest that is right for a client and a channel; labels are known."""
    client = density.client
    law = density.fixed({"codes": batch.codes[:1]}).trace({"scores": batch.scores[:1]}, 1).nodes["g"]["fn"]
    alone = not (client.mixes_batch or client.local or client.noise_shape is not None)
    alone &= not get(client.loss).of_tokens or batch.x.shape[1] == 1  # else a sentence's share is by all lengths
    if isinstance(law, Gaussian) and isinstance(law.sigma, float) and alone:
        return Residual(density, law.sigma)
    return Whole(density)


@lru_cache(maxsize=1)  # a record is moved dozens of times beside one residual
def _square(beside: Tensor) -> Tensor:
    """‖r‖² of residuals (C, D), which nothing changes in place, (C, 1)."""
    return beside.square().sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Residual:
    """Gaussian noise on an update that is a sum over records."""

    density: Density
    sigma: float

    def weight(self, b: int) -> float:
        """w_b: the share of record b in the batch's update, in units of its own."""
        y, shares = self.labels, get(self.density.client.loss).shares
        return float(shares(y)[b] / shares(y[b : b + 1])[0]) if len(y) > 1 else 1.0  # whatever the loss counts it by

    @property
    def labels(self) -> Tensor:
        labels = self.density.observed.labels
        assert labels is not None
        return labels

    def update(self, x: Tensor, b: int) -> Update:
        """u_b of records x (N, width)."""
        y = self.labels[b : b + 1].expand(len(x), 1)
        return self.density.client.update(x[:, None], y)

    def shared(self, x: Tensor, b: int) -> Tensor:
        """w_b u_b of records x (N, width), (N, D), float64."""
        return self.weight(b) * self.update(x, b).materialise().double()

    def rest(self, x: Tensor, without: int | None = None) -> Tensor:
        """g − u of batches x (C, B, width), (C, D), float64; without the record of a place."""
        rest = self.density.observed.g.double().expand(len(x), -1)
        for b in range(x.shape[1]):
            rest = rest if b == without else rest - self.shared(x[:, b], b)
        return rest

    def beside(self, batch: Batch, b: int) -> Tensor:
        return self.rest(batch.x, without=b)

    def after(self, beside: Tensor, batch: Batch, b: int) -> Tensor:
        following, x = (b + 1) % batch.x.shape[1], batch.x
        return beside if following == b else beside - self.shared(x[:, b], b) + self.shared(x[:, following], following)

    def at(self, beside: Tensor, batch: Batch, b: int, tried: Tried) -> Tensor:
        weight, x, client = self.weight(b), tried.x, self.density.client
        parts = []
        step = 10**9 if client.lazy else max(1, ENTRIES // (len(x) * client.update_size))
        for part in x.split(step, 1):
            update = self.update(part.flatten(0, 1), b)
            inner, square = inner_by_chain(update, beside, part.shape[1]), update.sqnorm().unflatten(0, part.shape[:2])
            parts.append(2 * weight * inner - weight**2 * square)
        return (torch.cat(parts, 1) - _square(beside)) / (2 * self.sigma**2)


@dataclass(frozen=True, eq=False)
class Whole:
    """Any client and channel: the model's own density of every candidate's batch."""

    density: Density

    def beside(self, batch: Batch, b: int) -> Tensor:
        return torch.zeros(len(batch.x), 0)

    def after(self, beside: Tensor, batch: Batch, b: int) -> Tensor:
        return beside

    def at(self, beside: Tensor, batch: Batch, b: int, tried: Tried) -> Tensor:
        count = tried.codes.shape[1]
        whole = []
        for held, own in ((batch.codes, tried.codes), (batch.scores, tried.scores)):
            each = held[:, None].expand(-1, count, *held.shape[1:]).clone()
            each[:, :, b] = own
            whole.append(each.flatten(0, 1))
        terms = self.density.fixed({"codes": whole[0]}).terms(whole[1].flatten(1))[1]
        return terms.unflatten(0, (len(tried.codes), count))


def _rows(factor: Factor, count: int) -> tuple[Tensor, Tensor]:
    """a and δ of one layer, (C, K, positions, ·), float64, of one record each."""
    a, d = (t.double().flatten(1, -2).unflatten(0, (-1, count)) for t in (factor.inputs, factor.deltas))
    return a, d


def _plain(factor: Factor | Lookup | Entries) -> bool:
    if not isinstance(factor, Factor) or factor.weight is None or factor.window is not None:
        return False
    return factor.inputs.shape[-3] == 1


def inner_by_chain(update: Update, g: Tensor, count: int) -> Tensor:
    """⟨g_c, u_ck⟩ of one record's updates, chain by chain: (C, K), float64.

    Args:
        update: of C · K records, each a batch of its own. g: (C, D), float64.
    """
    if not isinstance(update, LazyUpdate):
        return (update.materialise().double().unflatten(0, (len(g), count)) @ g[..., None])[..., 0]
    total = g.new_zeros(len(g), count)
    for factor in update.factors:
        if isinstance(factor, Factor) and _plain(factor):
            a, d = _rows(factor, count)
            weight = g[:, factor.weight].unflatten(1, (d.shape[-1], a.shape[-1]))
            projected = (a.flatten(1, 2) @ weight.mT).unflatten(1, a.shape[1:3])
            if factor.bias is not None:
                projected = projected + g[:, None, None, factor.bias]
            total = total + (projected * d).sum((-2, -1))
        elif isinstance(factor, Lookup):
            ids, d = (t.flatten(1, 2).unflatten(0, (len(g), count)) for t in (factor.ids, factor.deltas))
            chain = torch.arange(len(g), device=g.device)[:, None, None]
            total = total + (g[:, factor.where].unflatten(1, (factor.rows, -1))[chain, ids] * d).sum((-2, -1))
        else:
            for where, entries in factor.entries():
                total = total + (entries.double().unflatten(0, (len(g), count)) @ g[:, where, None])[..., 0]
    return total


def gram_by_chain(update: Update, count: int) -> Tensor:
    """⟨u_cj, u_ck⟩ of one record's updates, (C, K, K), float64: (δ_j·δ_k)(a_j·a_k) of a layer with one position."""
    if not isinstance(update, LazyUpdate):
        u = update.materialise().double().unflatten(0, (-1, count))
        return u @ u.mT
    total: Tensor | None = None
    for factor in update.factors:
        if isinstance(factor, Factor) and _plain(factor) and factor.inputs.shape[-2] == 1:
            a, d = (t[:, :, 0] for t in _rows(factor, count))
            part = (d @ d.mT) * (a @ a.mT + (factor.bias is not None))
        else:
            u = torch.cat([e.double() for _, e in factor.entries()], -1).unflatten(0, (-1, count))
            part = u @ u.mT
        total = part if total is None else total + part
    assert total is not None
    return total
