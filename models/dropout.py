"""Bayes-optimal behind dropout: the mask is a latent variable like any other.

z ~ Normal(0, I)                            (batch, rank)
x = mean + factor z                         (batch, *input_shape)
y ~ client's label prior                    (batch,)
ε ~ Normal(0, I)                            (batch, features), whose size is the mask
g | x, y ~ Normal(u(x, y, ε), sigma²)       (update_size,)

The last layer's gradient gives the mask away: its columns are 0 where a feature was dropped. Which of the masks it is
changes the density by a jump, and the slope in ε is that of a smooth one (`pplleak.client.masks`): a
search finds its way, and values are exact. A client without dropout draws no noise: the model is then `gaussian`.

Source: Scheliga, Mäder and Seeland, Dropout is NOT All You Need to Prevent Gradient Leakage, AAAI 2023 (image and mask
together).
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.priors.gaussian import fit_gaussian

MAP = {"starts": 8, "lr": 0.1}  # a search may end on the wrong side of a mask


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    noise = None if client.noise_shape is None else pyro.sample("noise", client.noise_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y, noise), sigma))
