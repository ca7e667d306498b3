"""Bayes-optimal behind PRECODE: the bottleneck's noise is a latent variable like any other.

z ~ Normal(0, I)                            (batch, rank)
x = mean + factor z                         (batch, *input_shape)
y ~ client's label prior                    (batch,)
ε ~ Normal(0, I)                            (batch, size)
g | x, y ~ Normal(u(x, y, ε), sigma²)       (update_size,)

The gradient holds as much of ε as of x: ∂ℓ/∂W_D = δ bᵀ and ∂ℓ/∂b_D = δ give the bottleneck b away, ∂ℓ/∂W_E and
∂ℓ/∂b_E the features. A client without a bottleneck draws no noise: the model is then `gaussian`. Any other network that
draws Gaussian noise is known just so: `cvb`, `inf2guard`.

Source: Balunović et al. 2022, section 4 (the optimal adversary), for the noise of Scheliga et al. 2022.
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.priors.gaussian import fit_gaussian


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
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    noise = None
    if client.noise_shape is not None:
        one = torch.ones(batch_size, *client.noise_shape, dtype=client.dtype, device=client.device)
        noise = pyro.sample("noise", Normal(0 * one, one).to_event(one.dim()))
    return pyro.sample("g", channels.Gaussian(client.update(x, y, noise), sigma))
