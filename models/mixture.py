"""Images of several kinds (a mixture of Gaussians), Gaussian noise on the gradient.

z ~ Σ_k weights_k Normal(means_k, C_k)  (batch, rank), the leading principal components
w ~ Normal(0, I)                        (batch, pixels − rank), all others
x = mean + factor (w, z)                (batch, *input_shape)
y ~ client's label prior                (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)    (update_size,)

The component is summed out, so that Hamiltonian samplers see one smooth density (with several modes where the
gradient does not tell the components apart).

Source: Balunović et al. 2022, section 4, under a prior of our own.
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.priors import mixture


def model(
    client: Client, batch_size: int = 1, *, sigma: float = 0.1, prior: str = "", reference: str | Tensor = "digits"
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        prior: one of `pplleak prior fit mixture`, by name or path; none: one is fitted to the reference, and kept.
        reference: the public images for that: digits, mnist, cifar10 or a FOLDER (or a tensor).
    """
    x = mixture.prior(client, reference=reference, file=prior).sample(batch_size)
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
