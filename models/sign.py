"""Bayes-optimal behind sign compression: one bit an entry, a probit likelihood.

z ~ Normal(0, I)                     (batch, rank)
x = mean + factor z                  (batch, *input_shape)
y ~ client's label prior             (batch,)
g | x, y ~ sign(u(x, y) + sigma ε)   (update_size,)

signSGD (Bernstein et al. 2018) shares the signs of the gradient; p(g_i | x, y) = Φ(g_i u_i / sigma).

Source: Bernstein et al. 2018 (signSGD).
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
        sigma: standard deviation of the noise on each entry before its sign is taken.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Sign(client.update(x, y), sigma))
