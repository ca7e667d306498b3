"""Gaussian and Laplace in one: the likelihood behind matching gradients in L2 and L1 together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, per_chain, require_sigma
from pplleak.client.update import Update
from pplleak.errors import require_positive


class Elastic(Channel):
    """g = u + ε, every ε_i of the density that is a Gaussian times a Laplace:

        log p(g | u) = −(‖g − u‖² + λ ‖g − u‖₁) / 2σ² − D log Z
        Z = ∫ exp(−(ε² + λ |ε|) / 2σ²) dε = 2 √(2π) σ exp(c² / 2) Φ(−c),   c = λ / 2σ

    The elastic net (Zou and Hastie 2005) as a noise: |ε| is a Normal(−λ/2, σ²) cut off below 0, so that it has a
    closed normaliser and exact draws. The L1 distance needs the update's entries: `log_prob` materialises it.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, in the gradient's own units; the noise's standard deviation is smaller, the more so the larger λ.
        l1: λ, the weight of the L1 distance beside the squared one, in the gradient's own units. Positive.
    """

    def __init__(self, update: Update, sigma: Sigma = 0.1, *, l1: float = 0.1) -> None:
        require_sigma(sigma)
        require_positive(l1=l1)
        self.sigma, self.l1 = sigma, l1
        super().__init__(update, sigma=sigma, l1=l1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        from scipy.special import log_ndtr, ndtri_exp  # where it is used: `log_prob` needs no scipy

        u = self.updates(sample_shape)
        sigma = per_chain(self.sigma, u)[..., None]
        c = (self.l1 / 2 / sigma).cpu().numpy()
        uniform = 1 - torch.rand_like(u, dtype=torch.float64).cpu().numpy()  # in (0, 1]: its logarithm is finite
        beyond = -c - ndtri_exp(log_ndtr(-c) + torch.from_numpy(uniform).log().numpy())
        length = sigma * torch.as_tensor(beyond, device=u.device).clamp(min=0)
        return u + torch.where(torch.rand_like(u) < 0.5, -length, length).to(u.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        sigma = per_chain(self.sigma, value)
        loss = self.total(lambda u, g: (g - u).square() + self.l1 * (g - u).abs(), value)
        c = self.l1 / 2 / sigma
        # log exp(c²/2) Φ(−c) as one function: apart they are large and cancel
        log_z = sigma.log() + 0.5 * math.log(2 * math.pi) + torch.special.erfcx(c / math.sqrt(2)).log()
        return -0.5 * loss / sigma**2 - self.update.size * log_z
