"""Bayes-optimal behind random pruning, when nobody says which entries were pruned.

z ~ Normal(0, I)                                                         (batch, rank)
x = mean + factor z                                                      (batch, *input_shape)
y ~ client's label prior                                                 (batch,)
g_i | x, y ~ rate Noise(0, sigma) + (1 − rate) Noise(u_i(x, y), sigma)   (update_size,)

The mask is summed out exactly, entry by entry: a spike at 0 and a slab around u_i (order `prune_first`). With
`noise_first` the pruned entries are exactly 0. Compare `masked`, whose adversary knows the mask.

Source: Balunović et al. 2022, section 4, for a mask that is summed out.
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
    rate: float = 0.5,
    order: channels.Order = "prune_first",
    noise: channels.Noise = "gaussian",
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        rate: the probability that an entry was pruned.
        order: prune_first (the noise hides the zeros) or noise_first (pruned entries are exactly 0).
        noise: gaussian or laplace.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Pruned(client.update(x, y), sigma, rate=rate, order=order, noise=noise))
