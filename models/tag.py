"""TAG (Deng et al. 2021): flat pixels, and entries matched in L2 and L1 at once.

x ~ Uniform(0, 1)                                                     (batch, *input_shape)
y ~ client's label prior                                              (batch,)
g | x, y ~ exp(−(‖g − u‖² + l1 ‖g − u‖₁) / 2 sigma²) / Zᴰ             (update_size,)

The attack minimises ‖u(x, y) − g‖² + l1 ‖u(x, y) − g‖₁ = −2σ² log p(x, y | g) + constant. A Gaussian times a Laplace is
a proper noise: `channels.Elastic` has its normaliser Z in closed form, and draws from it. One weight serves all layers;
theirs, made for transformers, may grow towards the output. The learning rate and its steps are the breaching library's,
the decay is not (linear there, after a warm-up).

Source: Deng et al. 2021 (TAG: Gradient Attack on Transformer-based Language Models).
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "adam", "beta2": 0.999, "decay": "cosine", "starts": 1, "steps": 1000, "lr": 0.05, "polish": 0}


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1, l1: float = 0.1) -> Tensor:
    """The generative program.

    Args:
        sigma: scale of the noise on each entry of the gradient, as the adversary believes it; it scales all of the
            attack's loss alike.
        l1: weight of the L1 distance, beside the squared one.
    """
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Elastic(client.update(x, y), sigma, l1=l1))
