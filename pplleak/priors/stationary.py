"""A stationary Gaussian: how pixels go together depends on how far apart they lie, never on where; by FFT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak import data
from pplleak.errors import require_positive
from pplleak.priors._contract import Like
from pplleak.priors._fitting import flat
from pplleak.priors.gaussian import standard_normal, standard_normal_log_prob
from pplleak.priors.gmrf import grid

AT_ONCE = 2**22  # pixels that are transformed together in a fit


@dataclass(frozen=True, eq=False)
class Stationary:
    """x = mean + C^½ ε,   ε ~ Normal(0, I),   C block-circulant: Cov(x_ci, x_dj) = c_cd(i − j), on a torus

    The Fourier transform takes C apart into one Hermitian matrix (channels, channels) for every frequency k, the
    cross-spectrum S_k (Brockwell & Davis 1991, chapter 11; circulant embedding, Dietrich & Newsam 1997):

        C^½ ε = F⁻¹ (S_k^½ (F ε)_k)        log det C = Σ_k log det S_k

    so that roots, determinants and draws of 224 × 224 colour images take milliseconds. Opposite edges are neighbours:
    that is the price.

    mean (channels,); root, inverse: S_k^½ and S_k^−½, complex (rows, columns // 2 + 1, channels, channels), at the
    frequencies of `torch.fft.rfft2`; log_det (): of C, float64.
    """

    mean: Tensor
    root: Tensor
    inverse: Tensor
    log_det: Tensor
    input_shape: tuple[int, ...]

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites e and x; x (*chains, batch_size, *input_shape)."""
        e = pyro.sample("e", self.noise(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(e))
        return x

    def noise(self, batch_size: int = 1) -> TorchDistribution:
        """ε ~ Normal(0, I), event shape (batch_size, *input_shape)."""
        return standard_normal(self.mean, batch_size, *self.input_shape)

    def decode(self, e: Tensor) -> Tensor:
        """ε (*chains, batch, *input_shape) -> x of the same shape."""
        return self.mean[:, None, None] + _filtered(e.to(self.mean.dtype), self.root)

    def encode(self, x: Tensor) -> Tensor:
        """x (N, *input_shape) -> ε, float64: the inverse of `decode`."""
        return _filtered(x.double() - self.mean.double()[:, None, None], self.inverse)

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        return self.decode(self.noise(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log Normal(x; mean, C) for x (N, *input_shape); (N,), float64."""
        return standard_normal_log_prob(self.encode(x).flatten(1)) - 0.5 * self.log_det


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Every frequency of x (…, channels, rows, columns) times its matrix."""
    spectrum = torch.fft.rfft2(x).movedim(-3, -1)[..., None]
    mixed = (kernel.to(spectrum.dtype) @ spectrum)[..., 0].movedim(-1, -3)
    return torch.fft.irfft2(mixed, s=x.shape[-2:])


def prior(like: Like, *, reference: str | Tensor = "digits", floor: float = 0.02) -> Stationary:
    """The stationary Gaussian of public images.

    Args:
        reference: the public images the prior is fitted to: a name or a folder of `pplleak.data`, or a tensor of them.
        floor: standard deviation, in pixel units, that every frequency keeps.
    """
    images = data.reference(reference, like.input_shape)
    return fit_stationary(images, floor=floor, dtype=like.dtype, device=like.device)


@lru_cache(maxsize=8)  # models call this at every trace
def fit_stationary(
    images: Tensor, *, floor: float = 0.02, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Stationary:
    """Maximum likelihood in closed form: mean is each channel's average, and

        S_k = (1/N) Σ_n (F (x_n − mean))_k (F (x_n − mean))_kᴴ + floor² I        (the averaged periodogram; F unitary)

    which is the covariance of the images and of all their shifts around the torus.

    Args:
        images: (N, channels, rows, columns), pixels in [0, 1].
        floor: standard deviation, in pixel units, that every frequency keeps.
        dtype, device: of the result. The fit itself runs in float64, where the images are.
    """
    require_positive(floor=floor)
    shape = grid(tuple(images.shape[1:]), "stationary")
    images = flat(images, "stationary").unflatten(1, shape)
    channels, rows, columns = shape
    mean = torch.stack([part.double().sum((0, 2, 3)) for part in images.split(64)]).sum(0)
    mean = mean / (len(images) * rows * columns)
    power = torch.zeros(rows, columns // 2 + 1, channels, channels, dtype=torch.complex128, device=images.device)
    for part in images.split(max(1, AT_ONCE // math.prod(shape))):
        spectrum = torch.fft.rfft2(part.double() - mean[:, None, None], norm="ortho").permute(2, 3, 1, 0)
        power += spectrum @ spectrum.mH / len(images)
    values, vectors = torch.linalg.eigh(power)
    values = values.clamp(min=0) + floor**2
    twice = torch.full((columns // 2 + 1,), 2.0, dtype=torch.float64, device=images.device)
    twice[0] = 1  # the other half of the frequencies are the conjugates of these, but for the first column
    if columns % 2 == 0:
        twice[-1] = 1  # and, of an even number, the last
    log_det = (twice[:, None] * values.log()).sum()
    kind = torch.complex(torch.empty(0, dtype=dtype), torch.empty(0, dtype=dtype)).dtype
    root, inverse = ((vectors * scale[..., None, :].to(vectors.dtype)) @ vectors.mH
                     for scale in (values.sqrt(), values.rsqrt()))  # fmt: skip
    return Stationary(mean.to(device, dtype), root.to(device, kind), inverse.to(device), log_det.to(device), shape)
