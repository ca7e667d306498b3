"""Inverting Gradients (Geiping et al. 2020, eq. 4): total variation, and a direction near that of the update.

p(x) ∝ exp(−kappa alpha TV(x)) on [0, 1]                        (batch, *input_shape); TV: |right| + |down|, a pixel
y ~ client's label prior                                        (batch,)
g / ‖g‖ | x, y ~ von Mises-Fisher(u(x, y) / ‖u(x, y)‖, kappa)   (update_size,)

The attack minimises 1 − cos(u(x, y), g) + alpha TV(x) = −log p(x, y | g) / kappa + constant: kappa, which it has not,
is how wide the posterior is around its result. TV is averaged over the pixels, as in the authors' code, whose first
example gives alpha. `tv` says what a Gibbs prior is.

Source: Geiping et al. 2020 (Inverting Gradients: How easy is it to break privacy in federated learning?), eq. 4.
"""

from __future__ import annotations

import math

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors.tv import TotalVariation
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "signed_adam", "beta2": 0.999, "decay": "step", "box": True, "starts": 1, "steps": 4000, "lr": 0.1}


def model(client: Client, batch_size: int = 1, *, kappa: float = 1e4, alpha: float = 1e-6) -> Tensor:
    """The generative program.

    Args:
        kappa: how closely directions agree; of the order of the update's size where they do.
        alpha: weight of the total variation a pixel, beside a cosine.
    """
    prior = TotalVariation(kappa * alpha / (batch_size * math.prod(client.input_shape)))
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    pyro.factor("tv", -prior.energy(x))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Directional(client.update(x, y), kappa=kappa))
