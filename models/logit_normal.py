"""Gaussian images squeezed into the pixel box, Gaussian noise on the gradient.

z ~ Normal(0, I)                       (batch, pixels)
x = sigmoid(mean + factor z)           (batch, *input_shape), inside (0, 1)
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)

`gaussian`, fitted to the logits of public images: pixels are correlated and cannot leave the box.

Source: Balunović et al. 2022, section 4, under a prior of our own.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.priors.logit_normal import fit_logit_normal


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    reference: str | Tensor = "digits",
    margin: float = 0.02,
    floor: float = 0.2,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        margin: public pixels are kept so far away from 0 and 1, where the logit is infinite.
        floor: standard deviation, in logits, that even a constant pixel keeps.
    """
    images = data.reference(reference, client.input_shape)
    prior = fit_logit_normal(images, margin=margin, floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
