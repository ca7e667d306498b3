"""Bayes-optimal behind Soteria: entries that were dropped are missing data, not zeros.

z ~ Normal(0, I)                                                      (batch, rank)
x = mean + factor z                                                   (batch, *input_shape)
y ~ client's label prior                                              (batch,)
g_i | x, y ~ 0 with probability rate, else Normal(u_i(x, y), sigma²)  (update_size,)

An entry that is exactly 0 was dropped (`pplleak.federation.defences.soteria`), and says nothing of x here; the rest
is as shared.
That its feature was a sensitive one is a hint that this adversary leaves out, so the true posterior is no wider.
Balunović et al. 2022 remove the defended layer from the loss altogether.

Source: Balunović et al. 2022, section 5 (the attack on Soteria), with the entries that were sent kept.
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
    rate: float = 0.4,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        rate: the share that was dropped; the zeros of g say which, so that only 0 or not 0 matters.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Pruned(client.update(x, y), sigma, rate=rate, order="noise_first"))
