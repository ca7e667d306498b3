"""A Gaussian Markov random field: total variation's smooth, proper relative, which can be sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak import data
from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._fitting import flat
from pplleak.priors.gaussian import standard_normal


@dataclass(frozen=True, eq=False)
class GMRF:
    """p(x) ∝ exp(−½ smooth Σ over neighbours (x_i − x_j)² − ½ pull Σ (x_i − mean)²), each channel for itself

    That is Normal(mean, (smooth L + pull I)⁻¹) with the Laplacian L of the grid of pixels (Rue & Held 2005, chapter 3).
    The cosine transform diagonalises L (free boundaries), so roots, determinants and draws are exact and cheap.

    mean (channels,); smooth (), pull (): positive, in 1 / pixel units²; input_shape (channels, rows, columns).
    """

    mean: Tensor
    smooth: Tensor
    pull: Tensor
    input_shape: tuple[int, ...]

    def precisions(self) -> Tensor:
        """Eigenvalues of smooth L + pull I, (rows, columns)."""
        rows, columns = (
            2 - 2 * torch.cos(math.pi * torch.arange(n, dtype=torch.float64, device=self.smooth.device) / n)
            for n in self.input_shape[1:]
        )
        return self.smooth.double() * (rows[:, None] + columns) + self.pull.double()

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites e and x; x (*chains, batch_size, *input_shape)."""
        e = pyro.sample("e", self.noise(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(e))
        return x

    def noise(self, batch_size: int = 1) -> TorchDistribution:
        """ε ~ Normal(0, I), event shape (batch_size, *input_shape)."""
        return standard_normal(self.mean, batch_size, *self.input_shape)

    def decode(self, e: Tensor) -> Tensor:
        """ε, in cosine coordinates, (*chains, batch, *input_shape) -> x of the same shape."""
        rows, columns = (_cosines(n).to(self.mean) for n in self.input_shape[1:])
        x = rows.mT @ (e.to(self.mean.dtype) * self.precisions().rsqrt().to(self.mean)) @ columns
        return self.mean[:, None, None] + x

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        return self.decode(self.noise(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) with its normaliser, for x (N, *input_shape); (N,), float64."""
        rows, columns = (_cosines(n).to(x.device) for n in self.input_shape[1:])
        e = rows @ (x.double() - self.mean.double()[:, None, None]) @ columns.mT
        precision = self.precisions()
        each = precision.log() - precision * e.square() - math.log(2 * math.pi)
        return 0.5 * each.sum((-3, -2, -1))


@lru_cache(maxsize=8)  # every decoding asks
def _cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) as a matrix (n, n), float64."""
    from scipy.fft import dct  # where it is used: no other prior needs scipy

    return torch.from_numpy(dct(np.eye(n), axis=0, norm="ortho"))


def grid(input_shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """`input_shape` where it is (channels, rows, columns); raises BadInput where pixels have no neighbours."""
    if len(input_shape) != 3:
        raise BadInput(f"a {kind} prior needs images (channels, rows, columns), not shape {tuple(input_shape)}")
    return tuple(input_shape)


def prior(like: Like, *, reference: str | Tensor = "digits", floor: float = 0.02) -> GMRF:
    """The Gaussian Markov random field of public images.

    Args:
        reference: the public images the prior is fitted to: a name or a folder of `pplleak.data`, or a tensor of them.
        floor: standard deviation, in pixel units, that even the smoothest images keep.
    """
    images = data.reference(reference, like.input_shape)
    return fit_gmrf(images, floor=floor, dtype=like.dtype, device=like.device)


@lru_cache(maxsize=8)  # models call this at every trace
def fit_gmrf(
    images: Tensor, *, floor: float = 0.02, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> GMRF:
    """Maximum likelihood: mean is each channel's average; smooth and pull, two numbers, by L-BFGS on their logarithms.

    Args:
        images: (N, channels, rows, columns), pixels in [0, 1].
        floor: standard deviation, in pixel units, that even the smoothest images keep.
        dtype, device: of the result. The fit itself runs in float64, on the CPU.
    """
    from scipy import optimize

    require_positive(floor=floor)
    shape = grid(tuple(images.shape[1:]), "gmrf")
    x = flat(images, "gmrf").double().cpu().unflatten(1, shape)
    mean = x.mean((0, 2, 3))
    rows, columns = (_cosines(n) for n in shape[1:])
    power = (rows @ (x - mean[:, None, None]) @ columns.mT).square().mean((0, 1)) + floor**2

    def cost(logs: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(logs, dtype=torch.float64, requires_grad=True)
        precision = GMRF(mean, free[0].exp(), free[1].exp(), shape).precisions()
        value = 0.5 * (precision * power - precision.log()).sum()
        (gradient,) = torch.autograd.grad(value, free)
        return float(value.detach()), gradient.numpy()

    start = -math.log(float(power.mean()))
    with torch.enable_grad():
        found = optimize.minimize(cost, np.array([start, start]), jac=True, bounds=[(-12.0, 12.0)] * 2)
    smooth, pull = torch.tensor(found.x, dtype=torch.float64).exp()
    return GMRF(mean.to(device, dtype), smooth.to(device, dtype), pull.to(device, dtype), shape)
