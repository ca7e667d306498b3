"""Gaussian images: every pixel's mean, and how the pixels go together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak.errors import BadInput


@dataclass(frozen=True, eq=False)
class FittedGaussian:
    """x = mean + factor z,  z ~ Normal(0, I): a Gaussian fitted to images, non-centred in PCA coordinates.

    mean (pixels,), factor (pixels, rank): eigenvectors of the covariance times the root of their eigenvalues.
    """

    mean: Tensor
    factor: Tensor
    input_shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.factor.shape[1]

    def coefficients(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ Normal(0, I), event shape (batch_size, rank)."""
        one = torch.ones((), dtype=self.mean.dtype, device=self.mean.device)
        return dist.Normal(0 * one, one).expand([batch_size, self.rank]).to_event(2)

    def decode(self, z: Tensor) -> Tensor:
        """z (*chains, batch, rank) -> x (*chains, batch, *input_shape).

        Samplers that keep their positions in the log-density's float64 (Pyro's NUTS) may pass such a z.
        """
        x = self.mean + z.to(self.factor.dtype) @ self.factor.mT
        return x.unflatten(-1, self.input_shape)


@lru_cache(maxsize=8)  # models call this at every trace; a tensor's hash is its identity
def fit_gaussian(images: Tensor, *, floor: float = 0.02, dtype: torch.dtype = torch.float64) -> FittedGaussian:
    """The maximum-likelihood Gaussian of `images`, with a noise floor so that every pixel keeps some freedom.

        mean = (1/N) Σ xₙ,   Σ = (1/N) Σ (xₙ − mean)(xₙ − mean)ᵀ + floor² I = Q diag(s²) Qᵀ,   factor = Q diag(s)

    Args:
        images: (N, *input_shape), pixels in [0, 1].
        floor: standard deviation, in pixel units, added to each pixel's own (constant pixels exist: borders).
        dtype: of the result. The fit itself runs in float64.
    """
    if images.shape[0] < 2:
        raise BadInput(f"a Gaussian prior needs at least 2 images to be fitted to, got {images.shape[0]}")
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    covariance = centred.mT @ centred / len(flat) + floor**2 * torch.eye(flat.shape[1], dtype=flat.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    return FittedGaussian(mean.to(dtype), (vectors * values.sqrt()).to(dtype), tuple(images.shape[1:]))
