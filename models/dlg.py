"""Deep Leakage from Gradients (Zhu et al. 2019, eq. 4): flat pixels, squared gradient distance.

x ~ Uniform(0, 1)                      (batch, *input_shape)
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)

DLG minimises ‖u(x, y) − g‖²; under a flat prior that is −2σ² log p(x, y | g), so its attack is this model's MAP. Its
L-BFGS leaves the pixels free, which here stay in [0, 1], and descends in y, too, which here is summed out. The
iterations are those of the breaching library.

Source: Zhu et al. 2019 (Deep Leakage from Gradients), eq. 4.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "lbfgs", "box": True, "starts": 1, "steps": 1200}


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
    """
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
