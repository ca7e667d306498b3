"""The L2 baseline of Balunović et al. 2022: squared distances, and smooth images.

p(x) ∝ exp(−½ sigma⁻² tv Σ (right² + down²)) on [0, 1]   (batch, *input_shape)
y ~ client's label prior
g | x, y ~ Normal(u(x, y), sigma² I)                 (update_size,)

Their baseline minimises ‖u(x, y) − g‖², that is −2σ² log p(g | x, y): DLG's likelihood, their Table 1. Their
code adds the smoothness, squared and searched over its weight (the default here is not theirs), and runs 200 iterations
of Adam; 0.15 is its learning rate in pixels, not in standard deviations of MNIST.

Source: Balunović et al. 2022 (Bayesian Framework for Gradient Leakage), Table 1.
"""

from __future__ import annotations

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
    pyro.factor("tv", -tv * steps / (2 * sigma**2))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
