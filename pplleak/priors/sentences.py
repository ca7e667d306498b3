"""Sentences of token ids: pairs of neighbouring tokens as often as public sentences have them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak import data
from pplleak.data.vocabulary import BEGIN, END, PAD, SPECIAL, lengths
from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like


@dataclass(frozen=True, eq=False)
class Sentences:
    """n ~ p(n);   w_i | w_{i−1} ~ (c(w_{i−1}, w_i) + κ p(w_i)) / (c(w_{i−1}) + κ),   x = [CLS] w_1 … w_n [SEP]

    with c the counts of public pairs, p(w) that of words and κ how many pairs the words alone weigh (a Dirichlet prior:
    MacKay & Peto 1995); w_0 = [CLS].

    log_length (length + 1,), of n; words (V,), p(w), 0 of the special tokens; pairs (M,), v V + w of every public pair,
    in growing order, and counts (M,) of them; befores (V,), c(v)
    """

    log_length: Tensor
    words: Tensor
    pairs: Tensor
    counts: Tensor
    befores: Tensor
    kappa: float
    input_shape: tuple[int, ...]
    dtype: torch.dtype

    def sample(self, batch_size: int = 1) -> Tensor:
        """Site `codes`, the token ids (*chains, batch_size, length), long, and x, the same as the client takes them.

        It carries this law (`infer["sentences"]`), for an inference that moves from token to token.
        """
        codes = pyro.sample("codes", Ids(self, batch_size), infer={"sentences": self})
        x: Tensor = pyro.deterministic("x", self.decode(codes))
        return x

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(self.dtype)

    def conditional(self, before: Tensor, word: Tensor) -> Tensor:
        """log p(word | before), (…)."""
        key = before * len(self.words) + word
        at = torch.searchsorted(self.pairs, key).clamp(max=len(self.pairs) - 1)
        count = torch.where(self.pairs[at] == key, self.counts[at], 0.0)
        return ((count + self.kappa * self.words[word]) / (self.befores[before] + self.kappa)).log()

    def log_prob(self, x: Tensor) -> Tensor:
        """log p of sentences x (…, length), (…), float64; −inf of what is none."""
        ids = x.long()
        n = lengths(ids)
        place = torch.arange(ids.shape[-1], device=ids.device)
        frame = torch.where(place == 0, BEGIN, torch.where(place == n[..., None] + 1, END, PAD))
        inside = (place > 0) & (place <= n[..., None])
        proper = torch.where(inside, ids >= len(SPECIAL), ids == frame).all(-1)
        each = self.conditional(ids[..., :-1], ids[..., 1:])
        total = self.log_length[n] + each.masked_fill(~inside[..., 1:], 0.0).sum(-1)
        return total.masked_fill(~proper, -torch.inf)

    def draw(self, shape: torch.Size) -> Tensor:
        """Sentences (*shape, length), by torch's generator."""
        count, length = int(np.prod(shape)), self.input_shape[0]
        ids = torch.full((count, length), PAD, device=self.words.device)
        ids[:, 0] = BEGIN
        n = torch.multinomial(self.log_length.exp(), count, replacement=True)
        rows = torch.arange(count, device=ids.device)
        ends = self.counts.cumsum(0)
        for i in range(1, length - 1):
            before = ids[:, i - 1]
            start = torch.searchsorted(self.pairs, before * len(self.words))
            begun = torch.where(start > 0, ends[(start - 1).clamp(min=0)], 0.0)
            u = torch.rand(count, dtype=torch.float64, device=ids.device) * (self.befores[before] + self.kappa)
            at = torch.searchsorted(ends, begun + u, right=True).clamp(max=len(self.pairs) - 1)
            alone = torch.multinomial(self.words, count, replacement=True)
            ids[:, i] = torch.where(u < self.befores[before], self.pairs[at] % len(self.words), alone)
        place = torch.arange(length, device=ids.device)
        ids[place > n[:, None]] = PAD
        ids[rows, n + 1] = END
        return ids.reshape(*shape, length)


class Ids(TorchDistribution):
    """The token ids of a batch of sentences, independent of each other: event shape (batch_size, length)."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True

    def __init__(self, law: Sentences, batch_size: int = 1, batch_shape: torch.Size = torch.Size()) -> None:
        self.law, self.batch_size = law, batch_size
        event = torch.Size([batch_size, *law.input_shape])
        super().__init__(torch.Size(batch_shape), event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, len(self.law.words) - 1), 2)

    def expand(self, batch_shape: torch.Size, _instance: Ids | None = None) -> Ids:
        return Ids(self.law, self.batch_size, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.law.draw(torch.Size(sample_shape) + self.batch_shape + self.event_shape[:1])

    def log_prob(self, value: Tensor) -> Tensor:
        lp = self.law.log_prob(value).sum(-1)
        return lp.expand(np.broadcast_shapes(lp.shape, self.batch_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        raise BadInput("the sentences of a batch are too many to enumerate: take the inference isir, which moves "
                       "through them, or dager, which reads them off a clean gradient")  # fmt: skip


def prior(like: Like, *, reference: str | Tensor = "digits", kappa: float = 100.0, unseen: float = 1.0) -> Sentences:
    """The law of public sentences.

    Args:
        reference: the public sentences the prior is fitted to: FILE.txt, or a tensor of their token ids.
        kappa: how many pairs of a word and its follower the follower's own frequency weighs.
        unseen: what is added to the count of every word.
    """
    vocabulary = getattr(like, "vocabulary", None)
    if vocabulary is None:
        raise BadInput("the prior sentences is of text, and the data are none: attack FILE.txt")
    require_positive(kappa=kappa, unseen=unseen)
    rows = data.reference(reference, like.input_shape)
    return fit_sentences(rows, len(vocabulary), kappa, unseen, like.dtype, like.device)


@lru_cache(maxsize=8)  # models call this at every trace; a tensor's hash is its identity
def fit_sentences(
    rows: Tensor, size: int, kappa: float, unseen: float, dtype: torch.dtype, device: torch.device
) -> Sentences:
    """The law of public sentences (N, length) of a vocabulary of `size` tokens. Lengths are smoothed over their
    neighbours, so that every one up to the longest is possible."""
    ids, length = rows.long().to(device), rows.shape[1]
    n = lengths(ids)
    steps = torch.arange(length + 1, device=device)
    near = torch.exp(-0.5 * ((steps[:, None] - n.double()) / max(1.0, length / 16)) ** 2).sum(1) + 1e-3
    near[0], near[length - 1 :] = 0.0, 0.0
    words = torch.full((size,), unseen, dtype=torch.float64, device=device)
    words[: len(SPECIAL)] = 0.0
    own = ids[ids >= len(SPECIAL)]
    words.index_add_(0, own, torch.ones(len(own), dtype=torch.float64, device=device))
    follows = ids[:, 1:] >= len(SPECIAL)
    keys = (ids[:, :-1] * size + ids[:, 1:])[follows]
    pairs, counts = keys.unique(return_counts=True)
    befores = torch.zeros(size, dtype=torch.float64, device=device)
    befores.index_add_(0, pairs // size, counts.double())
    return Sentences(
        (near / near.sum()).log(), words / words.sum(), pairs, counts.double(), befores, kappa, (length,), dtype
    )
