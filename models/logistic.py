"""Softmax regression under white Gaussian data: a model whose posterior is known exactly.

x ~ Normal(loc, scale² I)              (batch, *input_shape)
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)

For one linear layer u = (δ xᵀ, δ) with δ = softmax(W x + b) − e_y, which depends on x only through t = v̂·x where the
rows of W differ along one direction v̂ (two classes; or W = 0). Given t the posterior of x is Gaussian, so

    p(x, y | g) = ∫ p(y, t | g) Normal(x; t v̂ + m(t, y), (I − v̂v̂ᵀ) / λ(t, y)) dt,   λ = 1/scale² + |δ|²/σ²

and `exact_posterior` does the one integral on a grid. Every inference is tested against it.

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
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1, loc: float = 0.5, scale: float = 0.3) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        loc: prior mean of every pixel.
        scale: prior standard deviation of every pixel.
    """
    one = torch.ones((), dtype=client.dtype, device=client.device)
    shape = (batch_size, *client.input_shape)
    x = pyro.sample("x", dist.Normal(loc * one, scale * one).expand(shape).to_event(len(shape)))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))


@dataclass(frozen=True, eq=False)
class Exact:
    """The posterior as a finite mixture over cells (y, t), all float64.

    weight (cells,), y (cells,), t (cells,), centre (cells, pixels): E[x | t, y, g], width (cells,): λ^(-1/2),
    direction (pixels,): v̂, spacing: of the grid in t, log_evidence: log p(g), or log p(g | y) where the
    labels are known.
    """

    weight: Tensor
    y: Tensor
    t: Tensor
    centre: Tensor
    width: Tensor
    direction: Tensor
    spacing: float
    log_evidence: float

    def mean(self) -> Tensor:
        """E[x | g], (pixels,)."""
        return self.weight @ self.centre

    def sd(self) -> Tensor:
        """Posterior standard deviation of every pixel, (pixels,)."""
        across = self.width.square()[:, None] * (1 - self.direction.square())
        second = self.weight @ (across + self.centre.square())
        return (second - self.mean().square()).sqrt()

    def label_probabilities(self, num_classes: int) -> Tensor:
        """p(y | g), (num_classes,)."""
        return torch.zeros(num_classes, dtype=torch.float64).index_add_(0, self.y, self.weight)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent draws of x, (count, pixels)."""
        cell = torch.multinomial(self.weight, count, replacement=True, generator=generator)
        noise = torch.randn(count, len(self.direction), dtype=torch.float64, generator=generator)
        along = self.spacing * (torch.rand(count, dtype=torch.float64, generator=generator) - 0.5)
        noise = self.width[cell, None] * (noise - (noise @ self.direction)[:, None] * self.direction)
        return self.centre[cell] + noise + along[:, None] * self.direction


def exact_posterior(
    client: Client,
    observed: Observation,
    *,
    sigma: float = 0.1,
    loc: float = 0.5,
    scale: float = 0.3,
    cells: int = 4001,
) -> Exact:
    """p(x, y | g) by quadrature over t = v̂·x on ±8 prior standard deviations; labels known or unknown.

    Raises:
        BadInput: the network is not one linear layer whose rows differ along one direction, or the batch is not 1.
    """
    shapes = [len(s) for s in client.layers.values()]
    if shapes != [2, 1] or observed.batch_size != 1:
        raise BadInput("the exact posterior needs one linear layer with bias (--network linear) and batch size 1")
    weight, bias = (p.double() for p in client.parameters.values())
    rows = weight - weight.mean(0)
    _, strengths, directions = torch.linalg.svd(rows, full_matrices=False)
    if len(strengths) > 1 and strengths[1] > 1e-8 * strengths[0].clamp(min=1e-300):
        raise BadInput(
            "the exact posterior needs two classes or zero weights: the logits vary along one direction only"
        )
    v = directions[0] if strengths[0] > 0 else torch.eye(weight.shape[1], dtype=torch.float64)[0]
    g_weight, g_bias = observed.g.double().split([weight.numel(), bias.numel()])
    g_weight = g_weight.view_as(weight)

    prior = torch.full((weight.shape[1],), loc, dtype=torch.float64)
    t = v @ prior + scale * torch.linspace(-8, 8, cells, dtype=torch.float64)
    softmax = (t[:, None] * (rows @ v) + bias).softmax(-1)
    classes = range(client.num_classes) if observed.labels is None else [int(observed.labels)]
    log_weight, centres, widths = [], [], []
    for label in classes:
        delta = softmax - torch.eye(client.num_classes, dtype=torch.float64)[label]  # (cells, classes)
        square = delta.square().sum(1)
        precision = 1 / scale**2 + square / sigma**2
        pull = prior / scale**2 + delta @ g_weight / sigma**2  # (cells, pixels)
        along = pull @ v
        across = pull - along[:, None] * v
        log_weight.append(
            along * t - 0.5 * precision * t**2
            - 0.5 * (g_bias - delta).square().sum(1) / sigma**2
            + 0.5 * across.square().sum(1) / precision
            - 0.5 * (len(v) - 1) * precision.log()
        )  # fmt: skip
        centres.append(t[:, None] * v + across / precision[:, None])
        widths.append(precision.rsqrt())
    log_joint = torch.cat(log_weight)
    constant = (
        -0.5 * observed.g.numel() * math.log(2 * math.pi * sigma**2)
        - 0.5 * g_weight.square().sum() / sigma**2
        - 0.5 * len(v) * math.log(2 * math.pi * scale**2)
        - 0.5 * prior.square().sum() / scale**2
        + 0.5 * (len(v) - 1) * math.log(2 * math.pi)
        + (t[1] - t[0]).log()
        - (math.log(client.num_classes) if observed.labels is None else 0.0)
    )
    return Exact(
        log_joint.softmax(0),
        torch.tensor(list(classes)).repeat_interleave(cells),
        t.repeat(len(classes)),
        torch.cat(centres),
        torch.cat(widths),
        v,
        float(t[1] - t[0]),
        float(log_joint.logsumexp(0) + constant),
    )
