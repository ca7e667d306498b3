"""Smooth images (a Gaussian Markov random field), Gaussian noise on the gradient.

e ~ Normal(0, I)                                    (batch, *input_shape), in cosine coordinates
x = mean + (smooth L + pull I)^(-½) e               (batch, *input_shape), L the Laplacian of the pixel grid
y ~ client's label prior                            (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)                (update_size,)

An adversary who knows that neighbouring pixels are alike, and how much (two numbers fitted to public images), and
nothing else: the proper, Gaussian relative of total variation (Rue & Held 2005, chapter 3).

Source: Rue & Held 2005, chapter 3, in the adversary of Balunović et al. 2022, section 4.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.priors.gmrf import fit_gmrf


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
        floor: standard deviation, in pixel units, that even the smoothest images keep.
    """
    prior = fit_gmrf(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    e = pyro.sample("e", prior.noise(batch_size))
    x = pyro.deterministic("x", prior.decode(e))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
