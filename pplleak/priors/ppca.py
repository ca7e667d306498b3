"""Probabilistic principal components: a Gaussian with a few directions of its own and one variance for the rest."""

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
from pplleak.priors._fitting import flat
from pplleak.priors._principal import components
from pplleak.priors.gaussian import standard_normal


@dataclass(frozen=True, eq=False)
class PPCA:
    """x ~ Normal(mean, W Wᵀ + sd² I),   W = directions diag(√(scales² − sd²))    (Tipping & Bishop 1999)

    mean (pixels,); directions (pixels, rank), orthonormal; scales (rank,): standard deviations along them;
    sd (): of the rest. No matrix of pixels × pixels is formed.
    """

    mean: Tensor
    directions: Tensor
    scales: Tensor
    sd: Tensor
    input_shape: tuple[int, ...]

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites e and x; x (*chains, batch_size, *input_shape)."""
        e = pyro.sample("e", self.noise(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(e))
        return x

    def noise(self, batch_size: int = 1) -> TorchDistribution:
        """ε ~ Normal(0, I), event shape (batch_size, pixels)."""
        return standard_normal(self.mean, batch_size, len(self.mean))

    def decode(self, e: Tensor) -> Tensor:
        """x = mean + C^½ ε, with the symmetric root of C = W Wᵀ + sd² I; (*chains, batch, pixels) -> x."""
        e = e.to(self.mean.dtype)
        along = (e @ self.directions) * (self.scales - self.sd)
        return (self.mean + self.sd * e + along @ self.directions.mT).unflatten(-1, self.input_shape)

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        return self.decode(self.noise(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log Normal(x; mean, C) for x (N, *input_shape); (N,), float64."""
        centred = x.flatten(1).double() - self.mean.double()
        directions, scales, sd = self.directions.double(), self.scales.double(), self.sd.double()
        along = centred @ directions
        rest = centred.square().sum(1) - along.square().sum(1)
        pixels, rank = directions.shape
        log_det = 2 * scales.log().sum() + 2 * (pixels - rank) * sd.log()
        square = (along / scales).square().sum(1) + rest / sd**2
        return -0.5 * (square + log_det + pixels * math.log(2 * math.pi))


def prior(like: Like, *, reference: str | Tensor = "digits", rank: int = 32, floor: float = 0.02) -> PPCA:
    """The probabilistic principal components of public images.

    Args:
        reference: the public images the prior is fitted to: a name or a folder of `pplleak.data`, or a tensor of them.
        rank: directions with a variance of their own.
        floor: standard deviation, in pixel units, that even a constant direction keeps.
    """
    images = data.reference(reference, like.input_shape)
    return fit_ppca(images, rank=rank, floor=floor, dtype=like.dtype, device=like.device)


@lru_cache(maxsize=8)  # models call this at every trace
def fit_ppca(
    images: Tensor,
    *,
    rank: int = 32,
    floor: float = 0.02,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> PPCA:
    """Maximum likelihood in closed form, from the eigenvalues λ of the images' covariance + floor² I:

        scales² = λ_1 … λ_rank,   sd² = mean of λ_{rank+1} … λ_pixels      (Tipping & Bishop 1999, eqs. 7 and 8)

    Args:
        images: (N, *input_shape), pixels in [0, 1].
        rank: directions with a variance of their own.
        floor: standard deviation, in pixel units, that even a constant direction keeps.
        dtype, device: of the result. The fit itself runs in float64, where the images are.
    """
    require_positive(rank=rank, floor=floor)
    x = flat(images, "ppca").double()
    if rank >= x.shape[1]:
        rank = x.shape[1] - 1  # one direction at least is left for sd
    if rank < 1:
        raise BadInput("a ppca prior needs images of at least 2 pixels")
    found = components(x.unflatten(1, images.shape[1:]), floor, rank)
    assert found.rest is not None  # one direction is left
    mean, scales, directions = found.mean, found.values.flip(0).sqrt(), found.directions.flip(1)
    sd = scales.new_tensor(found.rest).sqrt()
    mean, directions, scales, sd = (t.to(device, dtype) for t in (mean, directions, scales, sd))
    return PPCA(mean, directions, scales, sd, tuple(images.shape[1:]))
