"""Bayes-optimal behind random pruning, when it is known which entries were pruned.

z ~ Normal(0, I)                                                (batch, rank)
x = mean + factor z                                             (batch, *input_shape)
y ~ client's label prior                                        (batch,)
g | x, y ~ mask ⊙ u(x, y) + noise of standard deviation sigma   (update_size,)

mask_i ~ Bernoulli(1 − rate), drawn from a seed that the server knows. This is the pruning defence of Balunović et al.
2022 (in their code: soft pruning with Laplace or Gaussian noise, the mask known to the adversary).

Source: Balunović et al. 2022 (soft pruning, the mask known).
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
    noise: channels.Noise = "gaussian",
    mask_seed: int = 0,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        rate: the share of entries that were pruned.
        noise: gaussian or laplace.
        mask_seed: the mask's, which client and server share.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Masked(client.update(x, y), sigma, rate=rate, noise=noise, mask_seed=mask_seed))
