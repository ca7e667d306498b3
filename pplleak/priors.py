"""Priors p(x) and p(y): what the adversary knows of the data before."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak.errors import BadInput


def uniform(input_shape: tuple[int, ...], batch_size: int = 1) -> TorchDistribution:
    """x ~ Uniform(0, 1) on the pixel box, event shape (batch_size, *input_shape)."""
    shape = (batch_size, *input_shape)
    return dist.Uniform(0.0, 1.0).expand(shape).to_event(len(shape))


class Labels(TorchDistribution):
    """y_b ~ Categorical(logits), independently for each example; event shape (batch_size,).

    The batch is one event, so that enumeration runs over whole label vectors: num_classes ** batch_size of them.

    Args:
        logits: (num_classes,)
        batch_size: examples.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True
    MAX_ENUMERATED = 10_000

    def __init__(
        self,
        logits: Tensor,
        batch_size: int = 1,
        batch_shape: torch.Size = torch.Size(),
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.batch_size = logits, batch_size
        super().__init__(torch.Size(batch_shape), torch.Size([batch_size]), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, len(self.logits) - 1), 1)

    def expand(self, batch_shape: torch.Size, _instance: Labels | None = None) -> Labels:
        return Labels(self.logits, self.batch_size, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return torch.distributions.Categorical(logits=self.logits).sample(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        lp = self.logits.log_softmax(-1)[value].sum(-1)
        return lp.expand(torch.broadcast_shapes(lp.shape, self.batch_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        count = len(self.logits) ** self.batch_size
        if count > self.MAX_ENUMERATED:
            raise BadInput(
                f"{len(self.logits)} classes and batch size {self.batch_size} make {count} label vectors, too many "
                "to enumerate: give the labels (--labels known) or a smaller batch"
            )
        grid = torch.tensor(list(itertools.product(range(len(self.logits)), repeat=self.batch_size)))
        grid = grid.to(self.logits.device).reshape(count, *(1 for _ in self.batch_shape), self.batch_size)
        return grid.expand(count, *self.batch_shape, self.batch_size) if expand else grid


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
