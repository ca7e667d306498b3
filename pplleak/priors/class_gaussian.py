"""Gaussian images of each class: a mean and a covariance for every label."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak import data, memory
from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._labelled import labels_of, numbers, require_classes, require_given, require_labelled
from pplleak.priors._principal import DENSE
from pplleak.priors.gaussian import standard_normal, standard_normal_log_prob


@dataclass(frozen=True, eq=False)
class ClassGaussian:
    """x | y = means_y + factors_y z,  z ~ Normal(0, I): a Gaussian a class, all in one standard normal z.

    means (classes, pixels); factors (classes, pixels, pixels), the coordinates of each in order of growing variance;
    labels (…, batch), whose images `sample` draws: `of_class` sets them.
    """

    means: Tensor
    factors: Tensor
    input_shape: tuple[int, ...]
    labels: Tensor | None = None

    def of_class(self, y: Tensor) -> ClassGaussian:
        """p(x | y) for labels y (…, batch).

        Raises:
            BadInput: a label that no class here has.
        """
        return replace(self, labels=require_classes("class_gaussian", y, len(self.means)))

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z and x; x (…, *chains, batch_size, *input_shape), where … are the leading dimensions of the labels."""
        z = pyro.sample("z", self.coefficients(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z))
        return x

    def coefficients(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ Normal(0, I), event shape (batch_size, pixels)."""
        return standard_normal(self.means, batch_size, self.means.shape[1])

    def decode(self, z: Tensor) -> Tensor:
        """z (*chains, batch, pixels) -> x (…, *chains, batch, *input_shape) of the labels that were given.

        Every class that is among them is decoded once, however many label vectors there are.
        """
        labels = require_given("class_gaussian", self.labels)
        found = np.unique(numbers(labels), return_inverse=True)
        classes, place = (torch.as_tensor(part, device=labels.device) for part in found)
        of_each = torch.einsum("...d,kpd->...kp", z.to(self.means.dtype), self.factors[classes]) + self.means[classes]
        lead = torch.broadcast_shapes(of_each.shape[:-2], place.shape)
        where = place.expand(lead)[..., None, None].expand(*lead, 1, of_each.shape[-1])
        x = of_each.expand(*lead, *of_each.shape[-2:]).gather(-2, where)
        return x.squeeze(-2).unflatten(-1, self.input_shape)

    def decode_parts(self, w: Tensor, z: Tensor) -> Tensor:
        """`decode` of (w, z), z (…, batch, rank) the leading coefficients, w (…, batch, pixels − rank) all others.

        Leading dimensions broadcast: where nothing conditions z on chains, it has those of the labels.
        """
        lead = torch.broadcast_shapes(z.shape[:-1], w.shape[:-1])
        return self.decode(torch.cat([w.to(z.dtype).expand(*lead, -1), z.expand(*lead, -1)], -1))

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), every class as likely as any other, by torch's generator."""
        y = torch.randint(len(self.means), (count,), device=self.means.device)
        return self.of_class(y).decode(self.coefficients(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = log (1/K) Σ_k Normal(x; means_k, factors_k factors_kᵀ) for x (N, *input_shape); (N,), float64."""
        return self.log_prob_each(x).logsumexp(-1) - math.log(len(self.means))

    def log_prob_each(self, x: Tensor) -> Tensor:
        """log p(x | y) of x (N, *input_shape) for every class, (N, classes), float64."""
        return torch.stack([standard_normal_log_prob(z) - log_det for z, log_det in self.encoded(x)], -1)

    def encoded(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Class by class, `encode`."""
        return (self.encode(x, k) for k in range(len(self.means)))

    def encode(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """x (N, *input_shape) -> the z that class k decodes to it, (N, pixels), and log |∂x/∂z| (); float64."""
        factor = self.factors[k].double()
        widths = factor.norm(dim=0)  # its columns are orthogonal: the inverse is the transpose, over widths²
        z = (x.flatten(1).double() - self.means[k].double()) @ (factor / widths.square())
        return z, widths.log().sum()

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        return {"means": self.means, "factors": self.factors}


def prior(
    like: Like,
    *,
    reference: str | Tensor = "digits",
    labels: Tensor | None = None,
    floor: float = 0.02,
    pooled: float = 16.0,
) -> ClassGaussian:
    """The Gaussians of the classes of public images.

    Args:
        reference: the public images the prior is fitted to: a name or a folder of `pplleak.data`, or a tensor of them.
        labels: theirs, (N,), where the images are a tensor; a name knows its own.
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
        pooled: of how many images of its own a class's covariance counts what all classes have in common.
    """
    images = data.reference(reference, like.input_shape)
    labels = labels_of("class_gaussian", reference, labels)
    classes = max(int(numbers(labels).max()) + 1, getattr(like, "num_classes", 0))
    return fit_class_gaussian(images, labels, classes, floor, pooled, like.dtype, like.device)


def restore_class_gaussian(
    tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype, prefix: str = ""
) -> ClassGaussian:
    """The prior that `tensors()` came from, in precision `dtype`; raises BadInput where they are none."""
    means, factors = tensors[f"{prefix}means"], tensors[f"{prefix}factors"]
    pixels = math.prod(input_shape)
    if means.dim() != 2 or means.shape[1] != pixels or factors.shape != (len(means), pixels, pixels):
        raise BadInput("the tensors of its Gaussians have other shapes")
    if not len(means) or not bool((factors.square().sum(1) > 0).all()):
        raise BadInput("the covariance of one of its Gaussians is singular")
    return ClassGaussian(means.to(dtype), factors.to(dtype), tuple(input_shape))


@lru_cache(maxsize=4)  # models call this at every trace; a tensor's hash is its identity
def fit_class_gaussian(
    images: Tensor,
    labels: Tensor,
    classes: int,
    floor: float = 0.02,
    pooled: float = 16.0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> ClassGaussian:
    """A Gaussian a class, each drawn towards what the classes have in common (Friedman 1989, eq. 8 to 10).

        means_k = (n_k x̄_k + x̄) / (n_k + 1),     S = (1/N) Σₙ (xₙ − means_yₙ)(xₙ − means_yₙ)ᵀ
        Σ_k = (n_k S_k + pooled S) / (n_k + pooled) + floor² I = factors_k factors_kᵀ

    with n_k images of mean x̄_k in class k, x̄ the mean of all N, and S_k the part of class k in S.

    Args:
        images: (N, *input_shape), pixels in [0, 1]. labels: (N,). classes: how many there are; one without images gets
            the mean of all, and S.
        pooled: weight of S, in images.
        dtype, device: of the result. The fit itself runs in float64, where the images are.

    Raises:
        BadInput: fewer than two images, more than 4096 pixels, or no memory for a matrix of pixels² a class.
    """
    require_positive(floor=floor, pooled=pooled)
    pixels = images[0].numel()
    require_labelled("class_gaussian", images, labels)
    if pixels > DENSE:
        raise BadInput(f"the prior class_gaussian takes images of at most {DENSE} pixels, not {pixels}: take gaussian")
    memory.require(3 * 8 * classes * pixels**2, f"{classes} Gaussians of {pixels} pixels", "take the prior gaussian")
    flat = images.flatten(1).double()
    of = [flat[labels.to(flat.device) == k] for k in range(classes)]
    means = torch.stack([(x.sum(0) + flat.mean(0)) / (len(x) + 1) for x in of])
    scatters = [(x - mean).mT @ (x - mean) for x, mean in zip(of, means, strict=True)]
    common = sum(scatters) / len(flat)
    ridge = floor**2 * torch.eye(pixels).to(flat)
    factors = []
    for x, scatter in zip(of, scatters, strict=True):
        values, directions = torch.linalg.eigh((scatter + pooled * common) / (len(x) + pooled) + ridge)
        factors.append(directions * values.sqrt())
    return ClassGaussian(
        means.to(device, dtype), torch.stack(factors).to(device, dtype), tuple(int(n) for n in images.shape[1:])
    )
