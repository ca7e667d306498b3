"""Bayes-optimal behind quantisation: every level stands for an interval of entries.

z ~ Normal(0, I)                                    (batch, rank)
x = mean + factor z                                 (batch, *input_shape)
y ~ client's label prior                            (batch,)
g | x, y ~ step round((u(x, y) + sigma ε) / step)   (update_size,)

p(g_i | x, y) is the Gaussian probability of the interval that rounds to g_i: exact, where `gaussian` takes the rounding
for noise.

Source: Balunović et al. 2022, section 4, for rounding.
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
    step: float = 0.1,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the dither on each entry before rounding, as the adversary believes it.
        step: the distance between two levels.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Quantised(client.update(x, y), sigma, step=step))
