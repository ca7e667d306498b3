"""Images near the manifold of a variational autoencoder, behind any of the paper's noise defences.

z ~ Normal(0, I)                       (batch, latents)
e ~ Normal(0, I)                       (batch, pixels)
x = decoder(z) + sd ∘ e                (batch, *input_shape)
y ~ client's label prior               (batch,)
g | x, y ~ channel(u(x, y))            (update_size,)

`models/vae.py` with another p(g | u): what the noise defences of Balunović et al. 2022 ask their Bayes-optimal
adversary to believe. Where a pruning mask is known, the client holds it (`pruning.py`), and the channel is the noise.

Source: Balunović et al. 2022, section 4; Kingma & Welling 2014.
"""

from __future__ import annotations

from typing import Literal

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors import vae


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    noise: Literal["gaussian", "laplace"] = "gaussian",
    rate: float = 0.0,
    prior: str = "",
    reference: str | Tensor = "digits",
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        noise: gaussian or laplace.
        rate: the probability that an entry was pruned by a mask that nobody tells; the mask is summed out.
        prior: a VAE of `pplleak prior fit vae`, by name or path; none: one is fitted to the reference, and kept.
        reference: the public images for that: digits, mnist, cifar10 or a FOLDER (or a tensor).
    """
    x = vae.prior(client, reference=reference, file=prior).sample(batch_size)
    y = pyro.sample("y", client.label_prior(batch_size))
    u = client.update(x, y)
    if rate:
        return pyro.sample("g", channels.Pruned(u, sigma, rate=rate, noise=noise))
    return pyro.sample("g", (channels.Gaussian if noise == "gaussian" else channels.Laplace)(u, sigma))
