"""Bayes-optimal behind Outpost: the weights say how wide the noise is, and the zeros where it lies.

z ~ Normal(0, I), x = mean + factor z       (batch, rank) and (batch, *input_shape)
y ~ client's label prior                    (batch,)
g | x, y ~ Normal(u(x, y), σ_i²)            (update_size,);   σ_i = `outpost.believed`, of g and θ alone

An entry that was not sent is about 0 as closely as the smallest one sent tells: a normal law in place of an interval.
That the noise lies where u is large is a hint which this adversary leaves out. What it does not find is therefore not
shown to be hidden.

Source: Balunović et al. 2022, section 4 (the optimal adversary), for the noise of Wang et al. 2023.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.federation.defences import outpost
from pplleak.priors.gaussian import fit_gaussian


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    noise: float = 0.8,
    prune: float = 0.8,
    seen: Tensor | None = None,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry that was sent, as the adversary believes it.
        noise: of σ_l, in units of min(1, Var(θ_l)).
        prune: the share of every tensor's entries that were dropped.
        seen: (update_size,), what was shared: it says where the noise is. An attack takes it from the observation;
            without it, there is none.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Weighted(client.update(x, y), outpost.believed(client, seen, sigma, noise, prune)))
