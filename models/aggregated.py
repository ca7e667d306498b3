"""Bayes-optimal behind aggregation: a mean over clients, and the others' updates are noise of a known shape.

z ~ Normal(0, I)                                                        (batch, rank)
x = mean + factor z                                                     (batch, *input_shape)
y ~ client's label prior                                                (batch,)
g | x, y ~ Normal((u(x, y) + (K−1) m) / K, (K−1)/K² S + sigma² I)       (update_size,)

K = clients. The other clients' updates have mean m and covariance S: of updates that are simulated on public images
with labels from the label prior, in batches as large as the attacked one.

Source: Balunović et al. 2022, section 4 (the optimal adversary), for a mean over clients.
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
    clients: int = 2,
    simulated: int = 200,
    directions: int = 20,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the mean, as the adversary believes it.
        clients: how many share one mean, the attacked one included.
        simulated: updates of other clients that are simulated.
        directions: principal components of their covariance that are kept; the rest is taken entry by entry.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    public = data.reference(reference, client.input_shape)
    prior = fit_gaussian(public, floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    others = {"clients": clients, "simulated": simulated, "directions": directions}
    return pyro.sample("g", channels.Aggregated.of(client.update(x, y), client, batch_size, public, sigma, **others))
