"""Total variation on the pixel box, Gaussian noise on the gradient.

p(x) ∝ exp(−tv Σ V(∂x)) on [0, 1]      (batch, *input_shape); V: |right| + |down|, or √(right² + down²)
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)

The prior of Geiping et al. 2020 (Inverting Gradients, eq. 4), here with a Gaussian channel. It is a Gibbs prior: known
up to its normaliser, multiplied onto the flat prior by a factor. Conditioned on g that is all an inference needs; but
Pyro ignores factors when nothing is observed, so unconditioned draws (`Predictive`) are those of the flat prior.
`gmrf` is the proper relative that can be sampled.

Source: Geiping et al. 2020 (Inverting Gradients), eq. 4.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors.tv import TotalVariation
from pplleak.priors.uniform import uniform


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    tv: float = 1.0,
    isotropic: bool = False,
    smoothing: float = 0.01,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        tv: weight of the total variation, in nats per pixel unit.
        isotropic: the length of the gradient, instead of the sum of its two parts.
        smoothing: differences far below it, in pixel units, count by their square; 0 is the exact total variation.
    """
    prior = TotalVariation(tv, isotropic=isotropic, smoothing=smoothing)
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    pyro.factor("tv", -prior.energy(x))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
