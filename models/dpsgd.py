"""Bayes-optimal behind DP-SGD: each example's gradient clipped, their mean in Gaussian noise.

z ~ Normal(0, I)                                                          (batch, rank)
x = mean + factor z                                                       (batch, *input_shape)
y ~ client's label prior                                                  (batch,)
g | x, y ~ Normal((1/B) Σ_b clip(∇ℓ_b), (noise_multiplier clip / B)² I)   (update_size,)

Abadi et al. 2016, algorithm 1, B = batch. An adversary who forgets the clipping (`gaussian`) believes in a gradient
that is too long; this one knows that norms above `clip` carry nothing.

Source: Abadi et al. 2016 (DP-SGD), algorithm 1.
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
    noise_multiplier: float = 0.1,
    clip: float = 1.0,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        noise_multiplier: standard deviation of the noise, in units of the clip.
        clip: the norm that each example's gradient is clipped to.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    channels.require_examples(client, batch_size)
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.DPSGD(client.update(x, y), noise_multiplier=noise_multiplier, clip=clip))
