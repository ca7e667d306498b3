"""Surrogate model extension (Zhu et al. 2023): FedAvg taken for one gradient, between its first and last weights.

p(x) ∝ exp(−kappa alpha TV(x)) on [0, 1]                (batch, *input_shape); TV: |right| + |down|, a pixel
a ~ Uniform(0, 1)                                       where on the line between both weights
y ~ client's label prior                                (batch,)
g / ‖g‖ | x, y ~ von Mises-Fisher(±v / ‖v‖, kappa)      (update_size,);  v = ∇θ ℓ(f_θ(x), y) at θ₀ + a (θ_T − θ₀)

The server knows both ends, θ₀ and θ_T = θ₀ + the shared movement, and none of the local steps: neither their number and
order nor their batches. Some gradient of all examples between the ends is nearly along the movement; the attack
minimises 1 − cos(v, g) + alpha TV(x) in x and in a. Of a client that shares its gradient, this is Inverting Gradients.

Source: Zhu, Yao and Blaschko 2023 (Surrogate Model Extension: A Fast and Accurate Weight Update Attack).
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import torch
from pyro.distributions import Uniform
from torch import Tensor

from pplleak import channels
from pplleak.client import Client, training
from pplleak.client.loss import get
from pplleak.client.update import DenseUpdate
from pplleak.priors.tv import TotalVariation
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "adam", "beta2": 0.999, "decay": "cosine", "box": True, "starts": 4, "steps": 1000, "lr": 0.1}


def between(client: Client, x: Tensor, y: Tensor, a: Tensor, movement: Tensor) -> DenseUpdate:
    """∇θ of the whole batch at θ₀ + a movement, in the direction in which the client shares it.

    Args:
        x: (*chains, batch, *input_shape). y: (*chains, batch). a: (*chains,). movement: (update_size,), θ_T − θ₀.
    """
    event = len(client.input_shape) + 1
    y = client.target(y)
    own = y.shape[get(client.loss).shares(y).dim() :]
    lead = np.broadcast_shapes(x.shape[:-event], y.shape[: y.dim() - 1 - len(own)], a.shape)
    x = x.to(client.dtype).expand(*lead, *x.shape[-event:]).reshape(-1, *x.shape[-event:])
    y = y.expand(*lead, *y.shape[y.dim() - 1 - len(own) :]).reshape(len(x), -1, *own)
    moved = client.split(a.to(client.dtype).expand(lead).reshape(-1, 1) * movement.to(client.dtype))
    at = {n: p.detach() + moved[n] for n, p in client.parameters.items()}
    v = training.gradients_at(client.network, at, x, y, get(client.loss).shares(y), loss=client.loss,
                              looped=client.path == "loop")  # fmt: skip
    sign = 1.0 if client.local is None else -math.copysign(1.0, client.local.factor)
    return DenseUpdate(sign * v.reshape(*lead, 1, -1))


def model(
    client: Client, batch_size: int = 1, *, kappa: float = 1e4, alpha: float = 1e-6, seen: Tensor | None = None
) -> Tensor:
    """The generative program.

    Args:
        kappa: how closely directions agree; of the order of the update's size where they do.
        alpha: weight of the total variation a pixel, beside a cosine.
        seen: (update_size,), what was shared: it says where θ_T is. An attack takes it from the observation; without
            it, as of a client that shares its gradient, both ends are θ₀.
    """
    prior = TotalVariation(kappa * alpha / (batch_size * math.prod(client.input_shape)))
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    pyro.factor("tv", -prior.energy(x))
    one = torch.ones((), dtype=client.dtype, device=client.device)
    a = pyro.sample("a", Uniform(0 * one, one))
    y = pyro.sample("y", client.label_prior(batch_size))
    moved = torch.zeros(client.update_size, dtype=client.dtype, device=client.device)
    if seen is not None and client.local is not None:
        moved = seen / client.local.factor
    return pyro.sample("g", channels.Directional(between(client, x, y, a, moved), kappa=kappa))
