"""Laplace noise: the likelihood behind matching gradients in L1."""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, distance, laplace_log_prob, noise, per_chain, require_sigma
from pplleak.client.update import Update


class Laplace(Channel):
    """g = u + ε,  ε_i ~ Laplace(0, b) with b = σ / √2.

        log p(g | u) = −√2 ‖g − u‖₁ / σ − D log √2 σ

    σ is the standard deviation, so that two channels of one σ add noise of one power; a scale of b is σ = √2 b.
    The L1 distance needs the update's entries: `log_prob` materialises it.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the noise's standard deviation per entry, in the gradient's own units. Positive.
    """

    has_rsample = True

    def __init__(self, update: Update, sigma: Sigma = 0.1) -> None:
        require_sigma(sigma)
        self.sigma = sigma
        super().__init__(update, sigma=sigma)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        return u + noise("laplace", u, self.sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        return laplace_log_prob(self.total(distance, value), per_chain(self.sigma, value), self.update.size)
