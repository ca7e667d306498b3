"""Bayes-optimal behind concealing samples: what conceals is one more image for each private one.

z ~ Normal(0, I)                            (batch, rank)
x = mean + factor z                         (batch, *input_shape)
y ~ client's label prior                    (batch,)
c ~ Normal(1/2, spread²)                    (batch, *input_shape): what was made to conceal
y′ ~ client's label prior                   (batch,), summed out
g | x, y ~ Normal(u([c, x], [q, e(y)]), sigma²)   (update_size,);   as in `pplleak.federation.defences.conceal`

The prior of c is a wide one: that it descends from x to a gradient like that of x is knowledge which this adversary
leaves out, so that the true posterior is no wider. `transformed` are c and x, `target` their labels.

Source: Balunović et al. 2022, section 4 (the optimal adversary), for the samples of Wu et al. 2024.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.federation.defences import conceal
from pplleak.priors.gaussian import fit_gaussian

MAP = {"starts": 4, "lr": 0.1}  # the two images of a pair may change places


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    mixing: float = 0.7,
    spread: float = 1.0,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        mixing: λ, the share of the other label in what conceals.
        spread: standard deviation of a pixel of what conceals, as the adversary believes it.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    conceal.require(client, mixing)
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    one = torch.ones(batch_size, *client.input_shape, dtype=client.dtype, device=client.device)
    c = pyro.sample("concealing", dist.Normal(0.5 * one, spread * one).to_event(one.dim()))
    labels = pyro.sample("labels", client.label_prior(batch_size))
    images = torch.cat(torch.broadcast_tensors(c, x), -len(client.input_shape) - 1)
    transformed = pyro.deterministic("transformed", images)
    target = pyro.deterministic("target", conceal.targets(client, y, labels, mixing))
    return pyro.sample("g", channels.Gaussian(client.update(transformed, target), sigma))
