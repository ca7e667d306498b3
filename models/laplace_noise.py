"""Bayes-optimal behind Laplace noise: Gaussian images, and entries matched in L1.

z ~ Normal(0, I)                                          (batch, rank)
x = mean + factor z                                       (batch, *input_shape)
y ~ client's label prior                                  (batch,)
g | x, y ~ Laplace(u(x, y), sigma / √2), entry by entry   (update_size,)

Balunović et al. 2022, section 4: the optimal adversary knows p(g | x); theirs adds Laplace noise in one experiment, and
their L1 attack is the MAP of this channel. `sigma` is the noise's standard deviation: their scale times √2.

Source: Balunović et al. 2022, section 4.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.priors.gaussian import fit_gaussian


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
    return pyro.sample("g", channels.Laplace(client.update(x, y), sigma))
