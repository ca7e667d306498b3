"""Images from a normalising flow on their principal components or a VAE's latents, Gaussian noise on the gradient.

z ~ neural spline flow                 (batch, rank), the leading principal components
w ~ Normal(0, I)                       (batch, pixels − rank), all others
x = mean + factor (w, z)               (batch, *input_shape)
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)

The flow is Durkan et al. 2019 (neural spline flows, coupling layers): as flexible as a VAE, with an exact density.
A prior that was fitted `on` vae has the VAE's latents for z, and x = decoder(z) + sd ∘ w.

Source: Durkan et al. 2019 (neural spline flows), in the adversary of Balunović et al. 2022, section 4.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors import flow


def model(
    client: Client, batch_size: int = 1, *, sigma: float = 0.1, prior: str = "", reference: str | Tensor = "digits"
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        prior: a flow of `pplleak prior fit flow`, by name or path; none: one is fitted to the reference, and kept.
        reference: the public images for that: digits, mnist, cifar10 or a FOLDER (or a tensor).
    """
    x = flow.prior(client, reference=reference, file=prior).sample(batch_size)
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
