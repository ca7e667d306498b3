"""Random pruning of which the adversary knows no more than the rate; `Masked` is that of a known mask."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pplleak.channels._base import (
    Channel,
    Noise,
    Sigma,
    distance,
    laplace_log_prob,
    noise,
    noise_log_prob,
    per_chain,
    require_choice,
    require_rate,
    require_sigma,
)
from pplleak.client.update import Update

Order = Literal["prune_first", "noise_first"]


class Pruned(Channel):
    """Each entry is pruned with probability `rate`, and nobody says which: the mask is summed out.

    With the noise after pruning (`prune_first`), every entry is a mixture of a slab around u_i and a spike at 0:

        g_i = m_i u_i + σ ε_i      p(g_i | u_i) = rate p_σ(g_i) + (1 − rate) p_σ(g_i − u_i)

    With the noise before pruning (`noise_first`) a pruned entry is exactly 0 and gives its mask away; the density is
    with respect to Lebesgue measure plus a unit point mass at 0 in every entry:

        g_i = m_i (u_i + σ ε_i)    p(g_i | u_i) = rate if g_i = 0, else (1 − rate) p_σ(g_i − u_i)

    `prune_first` needs entries; `noise_first` with Gaussian noise is as lazy as `Masked`.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the noise's standard deviation per entry, in the gradient's own units. Positive.
        rate: the probability that an entry is pruned, in [0, 1).
        order: prune_first (the noise hides the zeros) or noise_first (pruned entries are exactly 0).
        noise: gaussian or laplace; σ is its standard deviation in both.
    """

    def __init__(
        self,
        update: Update,
        sigma: Sigma = 0.1,
        *,
        rate: float = 0.5,
        order: Order = "prune_first",
        noise: Noise = "gaussian",
    ) -> None:
        require_sigma(sigma)
        require_rate(rate)
        require_choice("order", order, Order)
        require_choice("noise", noise, Noise)
        self.sigma, self.rate, self.order, self.noise = sigma, rate, order, noise
        super().__init__(update, sigma=sigma, rate=rate, order=order, noise=noise)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        mask = (torch.rand_like(u, dtype=torch.float64) >= self.rate).to(u)
        drawn = noise(self.noise, u, self.sigma)
        return mask * u + drawn if self.order == "prune_first" else mask * (u + drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        sigma = per_chain(self.sigma, value)[..., None]
        log_rate = math.log(self.rate) if self.rate else -math.inf
        if self.order == "noise_first" or not self.rate:
            return self._point_masses(value, sigma, log_rate)
        prior_odds, s = math.log1p(-self.rate) - log_rate, sigma.to(value.dtype)

        def kept_or_not(u: Tensor, g: Tensor) -> Tensor:
            """log (1 + odds) that an entry was kept; its log-odds are the prior's and log p(g_i − u_i) − log p(g_i)."""
            if self.noise == "gaussian":
                evidence = u * (g - u / 2) / s**2
            else:
                evidence = (g.abs() - distance(u, g)) * (math.sqrt(2) / s)
            return softplus(prior_odds + evidence, threshold=40)

        spikes = log_rate + noise_log_prob(self.noise, value.double(), sigma)
        return spikes.sum(-1) + self.total(kept_or_not, value)

    def _point_masses(self, value: Tensor, sigma: Tensor, log_rate: float) -> Tensor:
        kept = ((value != 0) | (self.order == "prune_first")).double()
        count = kept.sum(-1)
        dropped = self.update.size - count
        masks = count * math.log1p(-self.rate) + torch.where(dropped > 0, dropped * log_rate, torch.zeros_like(count))
        if self.noise == "gaussian":
            constant = sigma[..., 0].log() + 0.5 * math.log(2 * math.pi)
            return masks - 0.5 * self.sqdist(value, kept) / sigma[..., 0] ** 2 - count * constant
        l1 = self.total(lambda u, g, m: m * distance(u, g), value, kept.to(value.dtype))
        return masks + laplace_log_prob(l1, sigma[..., 0], count)
