"""Smooth Gaussian images behind a linear update: everything about this posterior is known exactly.

z ~ Normal(0, I)                                                      (batch, pixels)
x = loc + factor z,   factor factorᵀ = K                              (batch, *input_shape)
y ~ client's label prior                                              (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)                                  (update_size,)

K_ij = scale² exp(−|i − j| / length), |i − j| the distance of two pixels in rows and columns: neighbours go together,
so that some directions of x leak and others do not. Where u is affine in x given y (softmax regression from zero
weights: `--network linear`), with u = u₀ + J z,

    p(z | g, y) = Normal(A⁻¹ Jᵀ (g − u₀) / σ², A⁻¹),   A = I + JᵀJ/σ²        I(x; g | y) = ½ log det A

(Bishop 2006, eqs. 2.113 to 2.117). Bounds and estimates of information are tested against it.

Source: none: made for its exact posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation


def factor(client: Client, scale: float, length: float) -> Tensor:
    """The Cholesky factor of K, (pixels, pixels), float64; channels of one pixel are independent."""
    require_positive(scale=scale, length=length)
    shape = client.input_shape
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in shape)).reshape(-1, len(shape))
    if len(shape) == 3:
        grid[:, 0] *= 1e9 * length
    return torch.linalg.cholesky(scale**2 * torch.exp(-torch.cdist(grid, grid, p=1.0) / length))


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    loc: float = 0.5,
    scale: float = 0.3,
    length: float = 3.0,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        loc: prior mean of every pixel.
        scale: prior standard deviation of every pixel.
        length: distance, in pixels, at which the correlation of two pixels has fallen to 1/e.
    """
    one = torch.ones((), dtype=client.dtype, device=client.device)
    pixels = math.prod(client.input_shape)
    z = pyro.sample("z", dist.Normal(0 * one, one).expand([batch_size, pixels]).to_event(2))
    spread = z.to(client.dtype) @ factor(client, scale, length).to(one).mT
    x = pyro.deterministic("x", loc + spread.unflatten(-1, client.input_shape))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))


@dataclass(frozen=True, eq=False)
class Exact:
    """Normal(mean, covariance) of all pixels of the batch in one row, float64; logarithms in nats.

    mean (n,), covariance (n, n), log_evidence: log p(g | y), mutual_information: I(x; g | y).
    """

    mean: Tensor
    covariance: Tensor
    log_evidence: float
    mutual_information: float


def exact_posterior(
    client: Client,
    observed: Observation,
    *,
    sigma: float = 0.1,
    loc: float = 0.5,
    scale: float = 0.3,
    length: float = 3.0,
) -> Exact:
    """p(x | g, y) in closed form.

    Raises:
        BadInput: the labels are not known, or the update is not affine in x.
    """
    if observed.labels is None:
        raise BadInput("the exact posterior needs known labels: with unknown ones it is a mixture")
    shape = (observed.batch_size, *client.input_shape)
    n = math.prod(shape)
    root = torch.block_diag(*[factor(client, scale, length)] * observed.batch_size)

    def update(z: Tensor) -> Tensor:
        x = loc + (z @ root.mT).reshape(-1, *shape)
        return client.update(x, observed.labels.expand(len(z), -1)).materialise().double()  # type: ignore[union-attr]

    basis = torch.eye(n, dtype=torch.float64)
    base = update(0 * basis[:1])[0]
    jacobian = (update(basis) - base).mT
    if not torch.allclose(
        update(3 * basis), base + 3 * jacobian.mT, rtol=1e-3, atol=1e-5 * float(jacobian.abs().max())
    ):
        raise BadInput("the exact posterior needs an update that is affine in x: --network linear, from zero weights")
    precision = basis + jacobian.mT @ jacobian / sigma**2
    residual = observed.g.double() - base
    pull = jacobian.mT @ residual / sigma**2
    z = torch.linalg.solve(precision, pull)
    log_det = float(torch.logdet(precision))
    quadratic = residual.square().sum() / sigma**2 - pull @ z
    log_evidence = -0.5 * (len(residual) * math.log(2 * math.pi * sigma**2) + log_det + float(quadratic))
    covariance = root @ torch.linalg.solve(precision, root.mT)
    return Exact(loc + root @ z, covariance, log_evidence, 0.5 * log_det)
