"""Bayes-optimal behind Gaussian noise of another width for each layer.

z ~ Normal(0, I)                                (batch, rank)
x = mean + factor z                             (batch, *input_shape)
y ~ client's label prior                        (batch,)
g_l | x, y ~ Normal(u_l(x, y), sigmas_l² I)     (size of layer l,), for every parameter tensor l

Matching gradients with a weight a layer, w_l ‖u_l − g_l‖², is this likelihood with sigmas_l = w_l^(-1/2).

Source: Balunović et al. 2022, section 4, for a noise that differs from layer to layer.
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
    sigmas: tuple[float, ...] = (0.1,),
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigmas: standard deviation of the noise on the entries of each parameter tensor, or one for all.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Weighted(client.update(x, y), channels.by_layer(client, sigmas)))
