"""Gaussian images: every pixel's mean, and how the pixels go together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak import data
from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._principal import Root, components, restored, root_of


@dataclass(frozen=True, eq=False)
class FittedGaussian:
    """x = mean + factor z,  z ~ Normal(0, I): a Gaussian fitted to images, non-centred in PCA coordinates.

    mean (pixels,); root: of the covariance, its coordinates in order of growing variance; factor: the same as a matrix.
    """

    mean: Tensor
    root: Root
    input_shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.widths)

    @property
    def factor(self) -> Tensor:
        return self.root.matrix

    @property
    def widths(self) -> Tensor:
        """Standard deviations along the coordinates, (rank,)."""
        return self.root.widths

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z and x; x (*chains, batch_size, *input_shape)."""
        z = pyro.sample("z", self.coefficients(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z))
        return x

    def coefficients(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ Normal(0, I), event shape (batch_size, rank)."""
        return standard_normal(self.mean, batch_size, self.rank)

    def decode(self, z: Tensor) -> Tensor:
        """z (*chains, batch, rank) -> x (*chains, batch, *input_shape).

        Samplers that keep their positions in the log-density's float64 (Pyro's NUTS) may pass such a z.
        """
        return (self.mean + self.root(z.to(self.mean.dtype))).unflatten(-1, self.input_shape)

    def encode(self, x: Tensor) -> Tensor:
        """x (N, *input_shape) -> z (N, rank), float64: the inverse of `decode`, for a factor of full rank."""
        return self.root.to(None, torch.float64).inverse(x.flatten(1).double() - self.mean.double())

    @property
    def log_det(self) -> Tensor:
        """log |∂x/∂z|, float64."""
        return self.widths.double().log().sum()

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        return self.decode(self.coefficients(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log Normal(x; mean, factor factorᵀ) for x (N, *input_shape); (N,), float64."""
        return standard_normal_log_prob(self.encode(x)) - self.log_det

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        return {"mean": self.mean, **self.root.tensors()}


def prior(like: Like, *, reference: str | Tensor = "digits", floor: float = 0.02) -> FittedGaussian:
    """The Gaussian of public images.

    Args:
        reference: the public images the prior is fitted to: a name or a folder of `pplleak.data`, or a tensor of them.
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    images = data.reference(reference, like.input_shape)
    return fit_gaussian(images, floor=floor, dtype=like.dtype, device=like.device)


def standard_normal(like: Tensor, *shape: int) -> TorchDistribution:
    """Normal(0, I), event shape `shape`, in the precision and on the device of a tensor."""
    one = torch.ones((), dtype=like.dtype, device=like.device)
    return dist.Normal(0 * one, one).expand(shape).to_event(len(shape))


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log Normal(z; 0, I) over the last dimension."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def restore_gaussian(
    tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype, prefix: str = ""
) -> FittedGaussian:
    """The prior that `tensors()` came from, in precision `dtype`; raises BadInput where they are no Gaussian's."""
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    pixels, mean = math.prod(input_shape), own["mean"]
    root = restored(own, pixels)
    if mean.shape != (pixels,):
        raise BadInput("the tensors of its Gaussian have other shapes")
    return FittedGaussian(mean.to(dtype), root.to(None, dtype), tuple(input_shape))


@lru_cache(maxsize=8)  # models call this at every trace; a tensor's hash is its identity
def fit_gaussian(
    images: Tensor, *, floor: float = 0.02, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> FittedGaussian:
    """The maximum-likelihood Gaussian of `images`, with a noise floor so that every pixel keeps some freedom.

        mean = (1/N) Σ xₙ,   Σ = (1/N) Σ (xₙ − mean)(xₙ − mean)ᵀ + floor² I = Q diag(s²) Qᵀ,   factor = Q diag(s)

    More than 4096 pixels: Σ keeps as many components as the images have, within 2²⁵ entries of their directions (222
    components of 224 × 224 colour images), and one variance for the rest. No matrix of pixels² is formed.

    Args:
        images: (N, *input_shape), pixels in [0, 1].
        floor: standard deviation, in pixel units, added to each pixel's own (constant pixels exist: borders).
        dtype, device: of the result. The fit itself runs in float64, where the images are.
    """
    require_positive(floor=floor)
    if images.shape[0] < 2:
        raise BadInput(f"a Gaussian prior needs at least 2 images to be fitted to, got {images.shape[0]}")
    found = components(images, floor)
    return FittedGaussian(found.mean.to(device, dtype), root_of(found).to(device, dtype), tuple(images.shape[1:]))
