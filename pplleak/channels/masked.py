"""Random pruning whose mask the adversary knows.

The soft pruning of Balunović et al. 2022 (their code) fixes the mask, lets the adversary know it and adds the noise
after pruning. `Pruned` is the channel of an adversary who knows no more than the rate.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from pplleak.channels._base import (
    Channel,
    Noise,
    Sigma,
    distance,
    laplace_log_prob,
    noise,
    per_chain,
    require_choice,
    require_rate,
    require_sigma,
)
from pplleak.client.update import Update
from pplleak.errors import require_seed


@lru_cache(maxsize=8)  # a model builds the same channel at every step
def random_mask(size: int, rate: float, mask_seed: int) -> Tensor:
    """m (size,), float64: independent entries, 1 with probability 1 − rate; the same for the same seed."""
    generator = torch.Generator().manual_seed(mask_seed)
    return (torch.rand(size, dtype=torch.float64, generator=generator) >= rate).double()


class Masked(Channel):
    """g = m ⊙ u + σ ε with a mask m ∈ {0, 1}^D that the adversary knows, m_i ~ Bernoulli(1 − rate) at first.

        log p(g | u) = Σ_i log p_ε((g_i − m_i u_i) / σ) − D log σ

    The mask is drawn from a seed, which client and server share in place of the mask (Konečný et al. 2016, random
    masks); so a setting of one number carries it, in an observation file, too. With Gaussian noise `log_prob` is lazy
    for linear layers and a single example: Σ_i m_i (g_i − u_i)² + Σ_i (1 − m_i) g_i².

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the noise's standard deviation per entry, in the gradient's own units. Positive.
        rate: the share of entries that are pruned, in [0, 1).
        noise: gaussian or laplace; σ is its standard deviation in both.
        mask_seed: of the mask's generator.
    """

    has_rsample = True

    def __init__(
        self, update: Update, sigma: Sigma = 0.1, *, rate: float = 0.5, noise: Noise = "gaussian", mask_seed: int = 0
    ) -> None:
        require_sigma(sigma)
        require_rate(rate)
        require_choice("noise", noise, Noise)
        require_seed(mask_seed, "mask_seed")
        self.sigma, self.noise = sigma, noise
        self.mask = random_mask(update.size, rate, mask_seed)
        super().__init__(update, sigma=sigma, rate=rate, noise=noise, mask_seed=mask_seed)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        return self.mask.to(u) * u + noise(self.noise, u, self.sigma)

    def log_prob(self, value: Tensor) -> Tensor:
        sigma, mask = per_chain(self.sigma, value), self.mask.to(value.device)
        if self.noise == "gaussian":
            dropped = ((1 - mask) * value.double().square()).sum(-1)
            square = self.sqdist(value, mask) + dropped
            return -0.5 * square / sigma**2 - self.update.size * (sigma.log() + 0.5 * math.log(2 * math.pi))
        l1 = self.total(lambda u, g, m: distance(m * u, g), value, mask.to(value.dtype))
        return laplace_log_prob(l1, sigma, self.update.size)
