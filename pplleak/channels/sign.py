"""Sign compression: each entry is sent as one bit."""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, noise, per_chain, require_sigma
from pplleak.client.update import Update
from pplleak.errors import BadInput


class Sign(Channel):
    """g_i = sign(u_i + σ ε_i) ∈ {−1, 1},  ε ~ Normal(0, I): one bit an entry (signSGD, Bernstein et al. 2018).

        log p(g | u) = Σ_i log Φ(g_i u_i / σ)

    a probit likelihood. It needs entries.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the standard deviation of the noise before the sign is taken, per entry. Positive.
    """

    def __init__(self, update: Update, sigma: Sigma = 0.1) -> None:
        require_sigma(sigma)
        self.sigma = sigma
        super().__init__(update, sigma=sigma)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        return torch.where(u + noise("gaussian", u, self.sigma) < 0, -torch.ones_like(u), torch.ones_like(u))

    def log_prob(self, value: Tensor) -> Tensor:
        if not (value.abs() == 1).all():
            raise BadInput("the observation does not consist of signs (−1 and 1): believe in another channel")
        sigma = per_chain(self.sigma, value)[..., None]
        return self.total(lambda u, g: torch.special.log_ndtr(g * u / sigma), value)
