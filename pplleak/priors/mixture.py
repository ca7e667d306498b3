"""A mixture of Gaussians on the leading principal components: images of several kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._fitting import apart, flat
from pplleak.priors._store import trained
from pplleak.priors.gaussian import (
    FittedGaussian,
    fit_gaussian,
    restore_gaussian,
    standard_normal,
    standard_normal_log_prob,
)
from pplleak.progress import ProgressBar, silent


class RealMixture(dist.MixtureSameFamily):
    """A mixture of Gaussians, whose coordinates are the whole real line to `biject_to`."""

    support = constraints.real_vector  # torch's own says the same by a constraint that `biject_to` does not know


@dataclass(frozen=True, eq=False)
class Mixture:
    """x = mean + factor (w, z),   z ~ Σ_k weights_k Normal(means_k, C_k),   w ~ Normal(0, I)

    base      the Gaussian whose principal components are the coordinates: (w, z) in order of growing variance
    weights   (components,); means (components, rank); roots (components, rank, rank): Cholesky factors of the C_k

    The component is summed out, so the density is smooth; z holds the `rank` leading coefficients, w all others.
    """

    base: FittedGaussian
    weights: Tensor
    means: Tensor
    roots: Tensor

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.base.input_shape

    @property
    def rank(self) -> int:
        return self.means.shape[1]

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z, w and x; x (*chains, batch_size, *input_shape)."""
        z = pyro.sample("z", self.leading(batch_size))
        w = pyro.sample("w", self.rest(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z, w))
        return x

    def leading(self, batch_size: int = 1) -> TorchDistribution:
        """z, event shape (batch_size, rank)."""
        components = dist.MultivariateNormal(self.means, scale_tril=self.roots, validate_args=False)
        return RealMixture(dist.Categorical(self.weights), components).expand([batch_size]).to_event(1)

    def rest(self, batch_size: int = 1) -> TorchDistribution:
        """w ~ Normal(0, I), event shape (batch_size, pixels − rank)."""
        return rest(self.base, self.rank, batch_size)

    def decode(self, z: Tensor, w: Tensor) -> Tensor:
        """z (*chains, batch, rank), w (*chains, batch, pixels − rank) -> x (*chains, batch, *input_shape)."""
        return self.base.decode(torch.cat([w.to(z.dtype), z], -1))

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        return self.decode(self.leading(count).sample(), self.rest(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) for x (N, *input_shape); (N,), float64."""
        coefficients = self.base.encode(x)
        w, z = coefficients[:, : -self.rank], coefficients[:, -self.rank :]
        components = dist.MultivariateNormal(self.means.double(), scale_tril=self.roots.double())
        head = (components.log_prob(z[:, None]) + self.weights.double().log()).logsumexp(-1)
        return head + standard_normal_log_prob(w) - self.base.log_det

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        base = {f"base.{n}": t for n, t in self.base.tensors().items()}
        return base | {"weights": self.weights, "means": self.means, "roots": self.roots}


def prior(like: Like, *, reference: str | Tensor = "digits", file: str = "") -> Mixture:
    """The fitted mixture of a file, or one that is fitted to public images, once, and kept.

    Args:
        reference: the public images that it is fitted to where no file is named: a name or a folder of `pplleak.data`,
            or a tensor of them.
        file: a mixture of `pplleak prior fit mixture`, by name or path.
    """
    fitted: Mixture = trained("mixture", file, reference, tuple(like.input_shape), like.dtype, like.device)
    return fitted


def rest(base: FittedGaussian, rank: int, batch_size: int) -> TorchDistribution:
    """w ~ Normal(0, I): the coefficients behind the leading `rank`, event shape (batch_size, pixels − rank)."""
    return standard_normal(base.mean, batch_size, base.rank - rank)


def fit(
    images: Tensor,
    *,
    components: int = 10,
    rank: int = 16,
    floor: float = 0.02,
    ridge: float = 0.02,
    seed: int = 0,
    progress: ProgressBar = silent,
) -> Mixture:
    """Principal components in closed form, then scikit-learn's EM on the leading ones.

    Args:
        images: (N, *input_shape), pixels in [0, 1].
        components: Gaussians in the mixture (fewer where there are not three images for each).
        rank: leading principal components that it describes; the others stay one Gaussian.
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
        ridge: variance added to every component's, as a part of the coefficient's own.
    """
    from sklearn.mixture import GaussianMixture

    require_positive(components=components, rank=rank, floor=floor, ridge=ridge)
    x = flat(images, "mixture")
    base = fit_gaussian(images, floor=floor)
    rank = min(rank, base.rank - 1)
    if rank < 1:
        raise BadInput("a mixture prior needs images of at least 2 pixels")
    z = base.encode(images)[:, -rank:].numpy()
    with apart(seed):
        for _ in progress("EM", 1):
            count = max(1, min(components, len(x) // 3))
            fitted = GaussianMixture(count, reg_covar=ridge, random_state=seed).fit(z)
    roots = torch.linalg.cholesky(torch.from_numpy(fitted.covariances_))
    return Mixture(base, torch.from_numpy(fitted.weights_), torch.from_numpy(fitted.means_), roots)


def restore(tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype) -> Mixture:
    """The prior that `tensors()` came from, in precision `dtype`; raises BadInput where they are no mixture's."""
    base = restore_gaussian(tensors, input_shape, dtype, prefix="base.")
    weights, means, roots = (tensors[n].double() for n in ("weights", "means", "roots"))
    count, rank = means.shape
    if weights.shape != (count,) or roots.shape != (count, rank, rank) or not 0 < rank < math.prod(input_shape):
        raise BadInput("the tensors of its mixture do not fit each other")
    if float(weights.min()) < 0 or abs(float(weights.sum()) - 1) > 1e-3 or float(roots.diagonal(0, 1, 2).min()) <= 0:
        raise BadInput("its weights are no probabilities, or a component has no width")
    return Mixture(base, (weights / weights.sum()).to(dtype), means.to(dtype), roots.tril().to(dtype))
