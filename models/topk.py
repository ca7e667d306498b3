"""Bayes-optimal behind top-k sparsification: what was not sent is small, and that is evidence, too.

z ~ Normal(0, I)                                        (batch, rank)
x = mean + factor z                                     (batch, *input_shape)
y ~ client's label prior                                (batch,)
g | x, y ~ the k largest entries of u(x, y) + sigma ε   (update_size,)

Entries sent are Normal around u_i; entries not sent lie in [−t, t] with noise, t the smallest one sent: see
`pplleak.channels.TopK` for the density. Sending the largest entries: Aji and Heafield 2017.

Source: Aji & Heafield 2017.
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
    rate: float = 0.9,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        rate: the share of entries that were not sent.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.TopK(client.update(x, y), sigma, rate=rate))
