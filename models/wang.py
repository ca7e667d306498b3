"""Beyond Inferring Class Representatives (Wang et al. 2019): squared gradient distance and total variation.

p(x) ∝ exp(−tv TV(x) / 2 sigma²) on [0, 1]   (batch, *input_shape); TV(x) = Σ (right² + down²)^exponent
y ~ client's label prior                     (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)         (update_size,)

The attack minimises ‖u(x, y) − g‖² + tv TV(x) = −2σ² log p(x, y | g) + constant: the reconstruction of their passive
server, without the GAN that refines it. tv, the exponent, L-BFGS and its iterations are those of the breaching library.

Source: Wang et al. 2019 (Beyond Inferring Class Representatives: User-Level Privacy Leakage From Federated Learning).
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "lbfgs", "box": True, "starts": 1, "steps": 400}


def model(
    client: Client, batch_size: int = 1, *, sigma: float = 0.1, tv: float = 1.5e-4, exponent: float = 1.25
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it; it scales
            all of the attack's loss alike.
        tv: weight of the total variation, beside the squared gradient distance.
        exponent: of the squared length of a pixel's gradient; 0.5 is its length, above that steps cost more than ramps.
    """
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    right, down = torch.diff(x, dim=-1, append=x[..., -1:]), torch.diff(x, dim=-2, append=x[..., -1:, :])
    squares = (right.square() + down.square()).clamp(min=torch.finfo(x.dtype).tiny)  # a root's slope at 0 is infinite
    pyro.factor("tv", -tv * squares.pow(exponent).sum((-4, -3, -2, -1)) / (2 * sigma**2))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
