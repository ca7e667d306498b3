"""A mixture of Gaussians for every class, on the class's own principal components."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._fitting import apart
from pplleak.priors._labelled import require_classes, require_given
from pplleak.priors._store import trained
from pplleak.priors.class_gaussian import ClassGaussian, fit_class_gaussian, restore_class_gaussian
from pplleak.priors.gaussian import standard_normal, standard_normal_log_prob
from pplleak.priors.mixture import RealMixture
from pplleak.progress import ProgressBar, silent


@dataclass(frozen=True, eq=False)
class ClassMixture:
    """x | y = means_y + factors_y (w, z),   z | y ~ Σ_k weights_yk Normal(centres_yk, C_yk),   w ~ Normal(0, I)

    base     the Gaussians of the classes, whose principal components are the coordinates; it holds the labels
    weights  (classes, components); centres (classes, components, rank); roots (classes, components, rank, rank):
             Cholesky factors of the C_yk

    The component is summed out; z holds the `rank` leading coefficients of the class, w all others.
    """

    base: ClassGaussian
    weights: Tensor
    centres: Tensor
    roots: Tensor

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.base.input_shape

    @property
    def rank(self) -> int:
        return self.centres.shape[-1]

    def of_class(self, y: Tensor) -> ClassMixture:
        """p(x | y) for labels y (…, batch); raises BadInput for a label that no class here has."""
        return replace(self, base=self.base.of_class(require_classes("class_mixture", y, len(self.weights))))

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z, w and x; x (…, *chains, batch_size, *input_shape), where … are the leading dimensions of y."""
        z = pyro.sample("z", self.leading())
        w = pyro.sample("w", self.rest(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z, w))
        return x

    def leading(self) -> TorchDistribution:
        """z | y for the labels that were given, event shape (batch, rank)."""
        y = require_given("class_mixture", self.base.labels)
        return self._of(self.weights[y], self.centres[y], self.roots[y]).to_event(1)

    def rest(self, batch_size: int = 1) -> TorchDistribution:
        """w ~ Normal(0, I), event shape (batch_size, pixels − rank)."""
        return standard_normal(self.base.means, batch_size, self.base.means.shape[1] - self.rank)

    def decode(self, z: Tensor, w: Tensor) -> Tensor:
        """z (*chains, batch, rank), w (*chains, batch, pixels − rank) -> x (…, *chains, batch, *input_shape)."""
        return self.base.decode_parts(w, z)

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), every class as likely as any other, by torch's generator."""
        of = self.of_class(torch.randint(len(self.weights), (count,), device=self.weights.device))
        return of.decode(of.leading().sample(), of.rest(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log (1/K) Σ_y p(x | y) for x (N, *input_shape); (N,), float64."""
        return self.log_prob_each(x).logsumexp(-1) - math.log(len(self.weights))

    def log_prob_each(self, x: Tensor) -> Tensor:
        """log p(x | y) of x (N, *input_shape) for every class, (N, classes), float64."""
        found = []
        for k, (coefficients, log_det) in enumerate(self.base.encoded(x)):
            w, z = coefficients[:, : -self.rank], coefficients[:, -self.rank :]
            head = self._of(self.weights[k].double(), self.centres[k].double(), self.roots[k].double()).log_prob(z)
            found.append(head + standard_normal_log_prob(w) - log_det)
        return torch.stack(found, -1)

    @staticmethod
    def _of(weights: Tensor, centres: Tensor, roots: Tensor) -> TorchDistribution:
        components = dist.MultivariateNormal(centres, scale_tril=roots, validate_args=False)
        return RealMixture(dist.Categorical(weights), components)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        base = {f"base.{n}": t for n, t in self.base.tensors().items()}
        return base | {"weights": self.weights, "centres": self.centres, "roots": self.roots}


def prior(
    like: Like, *, reference: str | Tensor = "digits", labels: Tensor | None = None, file: str = ""
) -> ClassMixture:
    """The fitted mixtures of a file, or some that are fitted to public images with their labels, once, and kept.

    Args:
        reference: the public images that they are fitted to where no file is named: a name or a folder of
            `pplleak.data`, or a tensor of them.
        labels: theirs, (N,), where the images are a tensor; a name knows its own.
        file: mixtures of `pplleak prior fit class_mixture`, by name or path.
    """
    shape = tuple(like.input_shape)
    fitted: ClassMixture = trained("class_mixture", file, reference, shape, like.dtype, like.device, labels)
    return fitted


def fit(
    images: Tensor,
    labels: Tensor,
    *,
    components: int = 4,
    rank: int = 16,
    floor: float = 0.02,
    pooled: float = 16.0,
    ridge: float = 0.02,
    each: int = 64,
    seed: int = 0,
    progress: ProgressBar = silent,
) -> ClassMixture:
    """The Gaussians of the classes in closed form, then scikit-learn's EM on the leading coefficients of each class.

    Args:
        images: (N, *input_shape), pixels in [0, 1]. labels: (N,). A class of fewer than two images stays a Gaussian.
        components: Gaussians in the mixture of a class.
        rank: leading principal components of a class that its mixture describes; the others stay one Gaussian.
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
        pooled: of how many images of its own a class's covariance counts what all classes have in common.
        ridge: variance added to every component's, as a part of the coefficient's own.
        each: images of the smallest class for each component: fewer images, fewer components.
    """
    from sklearn.mixture import GaussianMixture

    require_positive(components=components, rank=rank, floor=floor, pooled=pooled, ridge=ridge, each=each)
    base = fit_class_gaussian(images, labels, int(labels.max()) + 1, floor, pooled)
    classes, pixels = base.means.shape
    rank = min(rank, pixels - 1)
    if rank < 1:
        raise BadInput("a mixture prior needs images of at least 2 pixels")
    own = [images[labels == k] for k in range(classes)]
    count = max(1, min(components, min((len(x) for x in own if len(x) > 1), default=0) // each))
    weights = torch.full((classes, count), 1 / count, dtype=torch.float64)
    centres = torch.zeros(classes, count, rank, dtype=torch.float64)
    roots = torch.eye(rank, dtype=torch.float64).repeat(classes, count, 1, 1)
    with apart(seed):
        for k in progress("EM", classes):
            if len(own[k]) > 1:
                z = base.encode(own[k], k)[0][:, -rank:]
                fitted = GaussianMixture(count, reg_covar=ridge, random_state=seed).fit(z.numpy())
                weights[k], centres[k] = torch.from_numpy(fitted.weights_), torch.from_numpy(fitted.means_)
                roots[k] = torch.linalg.cholesky(torch.from_numpy(fitted.covariances_))
    return ClassMixture(base, weights, centres, roots)


def restore(tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype) -> ClassMixture:
    """The prior that `tensors()` came from, in precision `dtype`; raises BadInput where they are no such mixtures."""
    base = restore_class_gaussian(tensors, input_shape, dtype, prefix="base.")
    weights, centres, roots = (tensors[n].double() for n in ("weights", "centres", "roots"))
    classes, count, rank = centres.shape
    if len(base.means) != classes or weights.shape != (classes, count) or roots.shape != (classes, count, rank, rank):
        raise BadInput("the tensors of its mixtures do not fit each other")
    if not 0 < rank < math.prod(input_shape):
        raise BadInput("the tensors of its mixtures do not fit each other")
    sums = weights.sum(-1, keepdim=True)
    if float(weights.min()) < 0 or float((sums - 1).abs().max()) > 1e-3 or float(roots.diagonal(0, 2, 3).min()) <= 0:
        raise BadInput("its weights are no probabilities, or a component has no width")
    return ClassMixture(base, (weights / sums).to(dtype), centres.to(dtype), roots.tril().to(dtype))
