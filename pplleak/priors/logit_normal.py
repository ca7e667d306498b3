"""Gaussian images squeezed into the pixel box: correlated pixels that cannot leave [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak import data
from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors.gaussian import FittedGaussian, fit_gaussian


@dataclass(frozen=True, eq=False)
class LogitNormal:
    """x = sigmoid(mean + factor z),   z ~ Normal(0, I)         (Atchison & Shen 1980, pixel by pixel)

    base: the Gaussian of logit x, non-centred in PCA coordinates.
    """

    base: FittedGaussian

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.base.input_shape

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z and x; x (*chains, batch_size, *input_shape)."""
        z = pyro.sample("z", self.coefficients(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z))
        return x

    def coefficients(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ Normal(0, I), event shape (batch_size, pixels)."""
        return self.base.coefficients(batch_size)

    def decode(self, z: Tensor) -> Tensor:
        """z (*chains, batch, pixels) -> x (*chains, batch, *input_shape), inside (0, 1)."""
        return self.base.decode(z).sigmoid()

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        return self.decode(self.coefficients(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log Normal(logit x; …) − Σ log x (1 − x) for x (N, *input_shape); (N,), float64; −∞ outside the box."""
        x = x.double()
        inside = ((x > 0) & (x < 1)).flatten(1).all(1)
        x = torch.where(inside.reshape(-1, *(1 for _ in self.input_shape)), x, 0.5)
        value = self.base.log_prob(x.logit()) - (x.log() + (-x).log1p()).flatten(1).sum(1)
        return torch.where(inside, value, -math.inf)


def prior(like: Like, *, reference: str | Tensor = "digits", margin: float = 0.02, floor: float = 0.2) -> LogitNormal:
    """The logit-normal of public images.

    Args:
        reference: the public images the prior is fitted to: a name or a folder of `pplleak.data`, or a tensor of them.
        margin: public pixels are kept so far away from 0 and 1, where the logit is infinite.
        floor: standard deviation, in logits, that even a constant pixel keeps.
    """
    images = data.reference(reference, like.input_shape)
    return fit_logit_normal(images, margin=margin, floor=floor, dtype=like.dtype, device=like.device)


@lru_cache(maxsize=8)  # models call this at every trace
def fit_logit_normal(
    images: Tensor,
    *,
    margin: float = 0.02,
    floor: float = 0.2,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> LogitNormal:
    """The maximum-likelihood Gaussian of logit(clamp(x, margin, 1 − margin)).

    Args:
        images: (N, *input_shape), pixels in [0, 1].
        margin: pixels are kept so far away from 0 and 1, where the logit is infinite.
        floor: standard deviation, in logits, that even a constant pixel keeps.
        dtype, device: of the result. The fit itself runs in float64, where the images are.
    """
    require_positive(margin=margin, floor=floor)
    if margin >= 0.5:
        raise BadInput(f"margin must be below 0.5, not {margin}")
    logits = images.double().clamp(margin, 1 - margin).logit()
    return LogitNormal(fit_gaussian(logits, floor=floor, dtype=dtype, device=device))
