"""Images near the manifold of a variational autoencoder, Gaussian noise on the gradient.

z ~ Normal(0, I)                       (batch, latents)
e ~ Normal(0, I)                       (batch, pixels)
x = decoder(z) + sd ∘ e                (batch, *input_shape)
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)

The adversary of Balunović et al. 2022, section 4, who has learnt p(x) from public images by a VAE (Kingma & Welling
2014). The pixel residual e lets x leave the decoder's image: the posterior is not confined to what the VAE can draw.

Source: Balunović et al. 2022, section 4; Kingma & Welling 2014.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors import vae


def model(
    client: Client, batch_size: int = 1, *, sigma: float = 0.1, prior: str = "", reference: str | Tensor = "digits"
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        prior: a VAE of `pplleak prior fit vae`, by name or path; none: one is fitted to the reference, and kept.
        reference: the public images for that: digits, mnist, cifar10 or a FOLDER (or a tensor).
    """
    x = vae.prior(client, reference=reference, file=prior).sample(batch_size)
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
