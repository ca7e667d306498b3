"""Low-rank Gaussian images (probabilistic PCA), Gaussian noise on the gradient.

e ~ Normal(0, I)                       (batch, pixels)
x = mean + C^½ e, C = W Wᵀ + sd² I     (batch, *input_shape), W (pixels, rank)
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)

Tipping & Bishop 1999: a few directions that public images vary along, and one variance for all others. For images too
large for the full covariance of `gaussian`, or too few to know it.

Source: Tipping & Bishop 1999, in the adversary of Balunović et al. 2022, section 4.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.priors.ppca import fit_ppca


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    reference: str | Tensor = "digits",
    rank: int = 32,
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        rank: directions with a variance of their own.
        floor: standard deviation, in pixel units, that even a constant direction keeps.
    """
    images = data.reference(reference, client.input_shape)
    prior = fit_ppca(images, rank=rank, floor=floor, dtype=client.dtype)
    e = pyro.sample("e", prior.noise(batch_size))
    x = pyro.deterministic("x", prior.decode(e))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
