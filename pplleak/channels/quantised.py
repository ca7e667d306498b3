"""Quantised updates: each entry is sent as a level; the likelihood is that of an interval."""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, log_interval, noise, per_chain, require_sigma
from pplleak.client.update import Update
from pplleak.errors import BadInput, require_positive


class Quantised(Channel):
    """g_i = Δ round((u_i + σ ε_i) / Δ),  ε ~ Normal(0, I): rounding to multiples of Δ, dithered by noise.

        p(g_i | u_i) = Φ((g_i + Δ/2 − u_i) / σ) − Φ((g_i − Δ/2 − u_i) / σ)

    a probability for each level. It is taken as a difference of log cdfs, accurate in both tails; it needs entries.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the dither's standard deviation per entry, in the gradient's own units. Positive.
        step: Δ, the distance between two levels, in the gradient's own units. Positive.
    """

    def __init__(self, update: Update, sigma: Sigma = 0.1, *, step: float = 0.1) -> None:
        require_sigma(sigma)
        require_positive(step=step)
        self.sigma, self.step = sigma, step
        super().__init__(update, sigma=sigma, step=step)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        return self.step * torch.round((u + noise("gaussian", u, self.sigma)) / self.step)

    def log_prob(self, value: Tensor) -> Tensor:
        g = value.double()
        levels = torch.round(g / self.step)
        if ((g / self.step - levels).abs() > 1e-3 * levels.abs().clamp(min=1)).any():
            raise BadInput(f"the observation does not lie on multiples of step = {self.step:g}: set the step, or "
                           "believe in another channel")  # fmt: skip
        sigma = per_chain(self.sigma, value)[..., None]
        # edges from whole levels: the next interval begins where this one ends, in float32 observations, too
        low, high = (levels - 0.5) * self.step, (levels + 0.5) * self.step
        return self.total(lambda u, low, high: log_interval((low - u) / sigma, (high - u) / sigma), low, high)
