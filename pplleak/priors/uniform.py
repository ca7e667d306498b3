"""The flat prior on the pixel box."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak.priors._contract import Like


@dataclass(frozen=True)
class Box:
    """x ~ Uniform(0, 1), every pixel for itself.

    input_shape, dtype, device: of the images.
    """

    input_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None

    def sample(self, batch_size: int = 1) -> Tensor:
        """Site x, (*chains, batch_size, *input_shape)."""
        x: Tensor = pyro.sample("x", self.images(batch_size))
        return x

    def images(self, batch_size: int = 1) -> TorchDistribution:
        """x ~ Uniform(0, 1), event shape (batch_size, *input_shape)."""
        return uniform(self.input_shape, batch_size, self.dtype, self.device)

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        return self.images(count).sample()

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) for x (N, *input_shape); (N,), float64: 0 in the box, −∞ outside."""
        inside = ((x >= 0) & (x <= 1)).flatten(1).all(1)
        return torch.zeros(len(x), dtype=torch.float64, device=x.device).masked_fill(~inside, -math.inf)


def prior(like: Like, *, reference: str | Tensor = "digits") -> Box:
    """The box of the client's images.

    Args:
        reference: not used: the box knows no images.
    """
    return Box(tuple(like.input_shape), like.dtype, like.device)


def uniform(
    input_shape: tuple[int, ...],
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> TorchDistribution:
    """x ~ Uniform(0, 1) on the pixel box, event shape (batch_size, *input_shape)."""
    shape = (batch_size, *input_shape)
    zero = torch.zeros((), dtype=dtype, device=device)
    return dist.Uniform(zero, zero + 1).expand(shape).to_event(len(shape))
