"""The flat prior on the pixel box."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution


def uniform(input_shape: tuple[int, ...], batch_size: int = 1) -> TorchDistribution:
    """x ~ Uniform(0, 1) on the pixel box, event shape (batch_size, *input_shape)."""
    shape = (batch_size, *input_shape)
    return dist.Uniform(0.0, 1.0).expand(shape).to_event(len(shape))
