"""Gaussian noise of one width for all entries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, per_chain, per_entry, require_sigma
from pplleak.client.update import Update


class Gaussian(Channel):
    """g = u + σ ε,  ε ~ Normal(0, I).

        log p(g | u) = −‖g − u‖² / 2σ² − (D/2) log 2πσ²

    Batch shape: the update's leading dimensions. Event shape: (D,), D = update_size. `log_prob` asks the update for
    a squared distance, in float64, and never for its entries; `sample` materialises it.

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
        return u + per_entry(self.sigma, u) * torch.randn_like(u)

    def log_prob(self, value: Tensor) -> Tensor:
        sigma = per_chain(self.sigma, value)
        return -0.5 * self.sqdist(value) / sigma**2 - self.update.size * (sigma.log() + 0.5 * math.log(2 * math.pi))
