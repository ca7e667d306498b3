"""The channel p(g | u): what the server sees of the update. The same object defends the client (`sample`) and
informs the adversary (`log_prob`)."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak.errors import require_positive
from pplleak.updates import Update


class Gaussian(TorchDistribution):
    """g = u + σ ε,  ε ~ Normal(0, I).

        log p(g | u) = −‖g − u‖² / 2σ² − (D/2) log 2πσ²

    Batch shape: the update's leading dimensions. Event shape: (D,), D = update_size. `log_prob` asks the update for
    a squared distance, in float64, and never for its entries; `sample` materialises it.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the noise's standard deviation per entry, in the gradient's own units. Positive.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, update: Update, sigma: float | Tensor, validate_args: bool | None = None) -> None:
        if not isinstance(sigma, Tensor):
            require_positive(sigma=sigma)
        self.update, self.sigma = update, sigma
        super().__init__(update.shape, torch.Size([update.size]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Gaussian | None = None) -> Gaussian:
        return Gaussian(self.update.expand(torch.Size(batch_shape)), self.sigma)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.update.materialise()
        sigma = torch.as_tensor(self.sigma, dtype=u.dtype, device=u.device)[..., None]  # one a chain, or one for all
        return u + sigma * torch.randn(*sample_shape, *u.shape, dtype=u.dtype, device=u.device)

    def log_prob(self, value: Tensor) -> Tensor:
        sigma = torch.as_tensor(self.sigma, dtype=torch.float64, device=value.device)
        if value.dim() == 1:
            sqdist = self.update.sqdist(value)
        else:  # one observation a chain (`Predictive` under a plate): entries are needed
            sqdist = (value.double() - self.update.materialise().double()).square().sum(-1)
        return -0.5 * sqdist / sigma**2 - self.update.size * (sigma.log() + 0.5 * math.log(2 * math.pi))
