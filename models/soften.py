"""Bayes-optimal behind perturbed labels: what was spread over the classes is a latent variable on the simplex.

z ~ Normal(0, I), x = mean + factor z       (batch, rank) and (batch, *input_shape)
y ~ client's label prior                    (batch,)
d ~ Dirichlet(1, …, 1)                      (batch, num_classes)
g | x, y ~ Normal(u(x, (1 − s) e(y) + s d), sigma²)   (update_size,);   as in `pplleak.federation.defences.soften`

`target` is the label that was used. Where it was not shared y is summed out: of an s above a half several labels
explain one `target`.

Source: Balunović et al. 2022, section 4 (the optimal adversary), for the labels of Wang, Liang and He 2024.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.federation.defences import soften
from pplleak.priors.gaussian import fit_gaussian


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    softness: float = 0.5,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        softness: s, what was taken from the label and spread at random over the classes.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    soften.require(client, softness)
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    one = torch.ones(batch_size, client.num_classes, dtype=client.dtype, device=client.device)
    drawn = pyro.sample("drawn", dist.Dirichlet(one).to_event(1)).to(client.dtype)
    target = pyro.deterministic("target", soften.softened(client, y, drawn, softness))
    return pyro.sample("g", channels.Gaussian(client.update(x, target), sigma))
