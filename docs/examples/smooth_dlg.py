"""DLG with a preference for images without edges: total variation, as in Inverting Gradients (Geiping et al. 2020).

x ~ Uniform(0, 1) · exp(−tv · TV(x))   (batch, *input_shape), TV the sum of |differences| of neighbouring pixels
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors.uniform import uniform


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1, tv: float = 1.0) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        tv: weight of the total variation; 0 gives back dlg.
    """
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    down, right = x.diff(dim=-2).abs(), x.diff(dim=-1).abs()
    total_variation = down.sum((-4, -3, -2, -1)) + right.sum((-4, -3, -2, -1))  # one number a chain
    pyro.factor("smoothness", -tv * total_variation)
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
