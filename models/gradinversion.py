"""See through Gradients (GradInversion; Yin et al. 2021): smooth, small images that fit the network's own statistics.

p(x) ∝ exp(−[tv TV(x) + l2 ‖x‖² + bn R(x)] / 2 sigma²) on [0, 1]   (batch, *input_shape); TV, ‖x‖²: a pixel
y ~ client's label prior                                           (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)                               (update_size,)

The attack minimises ‖u(x, y) − g‖² + tv TV(x) + l2 ‖x‖² + bn R(x) = −2σ² log p(x, y | g) + constant, with R the squared
distance of the batch's statistics to those of every BatchNorm layer (`priors.BatchNormStatistics`; the paper sums
distances, not their squares), 0 for a network that keeps none. The weights, over that of the gradient distance, and the
optimiser are the breaching library's, without its Langevin noise and its warm-up. `labels` reads distinct labels off
the gradient. Group consistency, a pull of several seeds towards their mean, is no belief but a search:
``--inference.starts 8 --inference.consensus 1``.

Source: Yin et al. 2021 (See through Gradients: Image Batch Recovery via GradInversion).
"""

from __future__ import annotations

import math

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.density.label_rules import of_distinct as labels
from pplleak.priors.batchnorm import BatchNormStatistics
from pplleak.priors.tv import TotalVariation
from pplleak.priors.uniform import uniform

__all__ = ["MAP", "labels", "model"]

MAP = {"optimizer": "adam", "beta2": 0.999, "decay": "cosine", "box": True, "starts": 1, "steps": 20_000, "lr": 0.1}


def model(
    client: Client, batch_size: int = 1, *, sigma: float = 0.1, tv: float = 2.0, l2: float = 0.01, bn: float = 2000.0
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it; it scales
            all of the attack's loss alike.
        tv: weight of the total variation a pixel, beside the squared gradient distance.
        l2: weight of the mean squared pixel.
        bn: weight of the distance to the BatchNorm statistics.
    """
    scale = 0.5 / sigma**2
    pixel = scale / (batch_size * math.prod(client.input_shape))
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    pyro.factor("tv", -TotalVariation(tv * pixel).energy(x))
    pyro.factor("l2", -l2 * pixel * x.square().sum((-4, -3, -2, -1)))
    if any(getattr(layer, "running_mean", None) is not None for layer in client.network.modules()):
        pyro.factor("bn", -BatchNormStatistics(client.network, bn * scale).energy(x))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
