"""Bayes-optimal behind ATS: the transform is part of the program, and its random choices are summed out.

z ~ Normal(0, I)                          (batch, rank)
x = mean + factor z                       (batch, channels, height, width)
y ~ client's label prior                  (batch,)
t ~ the policy's transforms               (batch,)
g | x, y ~ Normal(u(T_t(x), y), sigma²)   (update_size,)

`transformed` is T_t(x), what the gradient is really of: an adversary who knows of no transform finds that image, not
x. What T moves out of the picture only the prior can say. One image of a policy with three signs has 8 transforms, a
batch of B has 8^B.

Source: Balunović et al. 2022, section 5 (the attack on ATS), for the original image instead of the transformed one.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.federation.defences import ats
from pplleak.priors.gaussian import fit_gaussian

MAP = {"starts": 16, "lr": 0.1}  # the posterior has a mode for every transform that may have been drawn


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    policy: str = "3-1-7",
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        policy: of the client's transforms, by the authors' numbers: 3-1-7, or 3-1-7+43-18-18 for either.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    t = pyro.sample("t", ats.choices(policy, batch_size, like=x))
    transformed = pyro.deterministic("transformed", ats.transform(x, t, policy))
    return pyro.sample("g", channels.Gaussian(client.update(transformed, y), sigma))
