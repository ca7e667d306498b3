"""The L1 baseline of Balunović et al. 2022: absolute distances, and smooth images.

p(x) ∝ exp(−√2 sigma⁻¹ tv Σ (right² + down²)) on [0, 1]   (batch, *input_shape)
y ~ client's label prior
g | x, y ~ Laplace(u(x, y), sigma / √2)              (update_size,), entry by entry

Their baseline minimises ‖u(x, y) − g‖₁, that is −(σ/√2) log p(g | x, y), right for Laplace noise. Their
code adds the smoothness, squared and searched over its weight (the default here is not theirs), and runs 200 iterations
of Adam; 0.15 is its learning rate in pixels, not in standard deviations of MNIST.

Source: Balunović et al. 2022 (Bayesian Framework for Gradient Leakage), Table 1.
"""

from __future__ import annotations

import math

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "adam", "beta2": 0.999, "decay": "exponential", "box": True, "starts": 1, "steps": 200, "lr": 0.15}


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1, tv: float = 1e-4) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it; it scales
            all of the attack's loss alike.
        tv: weight of the smoothness, beside the distance of the gradients.
    """
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    steps = x.diff(dim=-1).square().sum((-4, -3, -2, -1)) + x.diff(dim=-2).square().sum((-4, -3, -2, -1))
    pyro.factor("tv", -tv * steps * math.sqrt(2) / sigma)
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Laplace(client.update(x, y), sigma))
