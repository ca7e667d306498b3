"""Behind noise that grows with the entry it hides: a channel of one's own.

x ~ Uniform(0, 1)                                                (batch, *input_shape)
y ~ client's label prior                                         (batch,)
g_i | x, y ~ Normal(u_i(x, y), sigma² + (relative u_i(x, y))²)   (update_size,)
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.priors.uniform import uniform


class Relative(channels.Channel):
    """g_i = u_i + √(σ² + (relative u_i)²) ε_i: noise that grows with the entry."""

    def __init__(self, update: Update, sigma: float = 0.1, relative: float = 0.1) -> None:
        self.sigma, self.relative = sigma, relative
        super().__init__(update, sigma=sigma, relative=relative)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        return u + (self.sigma**2 + (self.relative * u) ** 2).sqrt() * torch.randn_like(u)

    def log_prob(self, value: Tensor) -> Tensor:
        g, u = self.entries(value)
        return torch.distributions.Normal(u, (self.sigma**2 + (self.relative * u) ** 2).sqrt()).log_prob(g).sum(-1)


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1, relative: float = 0.1) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on an entry that is 0.
        relative: how much the noise grows with an entry.
    """
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", Relative(client.update(x, y), sigma, relative))
