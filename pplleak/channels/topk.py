"""Top-k sparsification: only the largest entries are sent (magnitude pruning of one update)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, log_interval, noise_log_prob, per_chain, require_rate, require_sigma
from pplleak.client.update import Update
from pplleak.errors import BadInput


class TopK(Channel):
    """v = u + σ ε,  g_i = v_i for the k largest |v_i|, and 0 elsewhere;  k = D − round(rate D), at least 1.

    The adversary sees which entries were sent (the support S) and what they hold; of the others it knows that none is
    larger than the smallest one sent, t = min over S of |g_i|:

        log p(g | u) = Σ_{i ∈ S} log Normal(g_i; u_i, σ²) + Σ_{i ∉ S} log [Φ((t − u_i) / σ) − Φ((−t − u_i) / σ)]

    a density with respect to Lebesgue measure on the k entries sent, summed over all supports of size k. What was not
    sent speaks, too; the interval needs entries, so `log_prob` materialises the update.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the noise's standard deviation per entry, in the gradient's own units. Positive.
        rate: the share of entries that are dropped, in [0, 1).
    """

    def __init__(self, update: Update, sigma: Sigma = 0.1, *, rate: float = 0.9) -> None:
        require_sigma(sigma)
        require_rate(rate)
        self.sigma, self.k = sigma, max(1, update.size - round(rate * update.size))
        super().__init__(update, sigma=sigma, rate=rate)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        v = u + per_chain(self.sigma, u).to(u.dtype)[..., None] * torch.randn_like(u)
        sent = v.abs().topk(self.k, -1).indices
        return torch.zeros_like(v).scatter(-1, sent, v.gather(-1, sent))

    def log_prob(self, value: Tensor) -> Tensor:
        sent = value != 0
        if not (sent.sum(-1) == self.k).all():
            raise BadInput(f"the observation has {int(sent.sum(-1).flatten()[0])} entries that are not 0, but rate "
                           f"{self.settings['rate']:g} sends {self.k} of {self.update.size}: set the rate, or believe "
                           "in another channel")  # fmt: skip
        sigma = per_chain(self.sigma, value)[..., None]
        t = torch.where(sent, value.double().abs(), math.inf).amin(-1, keepdim=True)

        def density(u: Tensor, g: Tensor) -> Tensor:
            unsent = log_interval((-t - u) / sigma, (t - u) / sigma)
            return torch.where(g != 0, noise_log_prob("gaussian", g - u, sigma), unsent)

        return self.total(density, value)
