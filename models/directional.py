"""Cosine matching as a belief: Gaussian images, and a direction near that of the update.

z ~ Normal(0, I)                                                (batch, rank)
x = mean + factor z                                             (batch, *input_shape)
y ~ client's label prior                                        (batch,)
g / ‖g‖ | x, y ~ von Mises-Fisher(u(x, y) / ‖u(x, y)‖, kappa)   (update_size,)

The likelihood behind cosine matching (Geiping et al. 2020), under the prior of `gaussian`. The norm of g says nothing:
an adversary who trusts the direction alone, or to whom the client sends no more.

Source: Geiping et al. 2020 (Inverting Gradients), eq. 4: cosine matching, as a likelihood.
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
    kappa: float = 1e4,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        kappa: how closely directions agree; of the order of the update's size where they do.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Directional(client.update(x, y), kappa=kappa))
