"""ROG (Yue et al. 2022): small images enlarged, and the squared distance to a gradient taken as it was sent.

l ~ Uniform(0, 1)                       (batch, channels, rows / scale, columns / scale), rounded up
x = bicubic(l)                          (batch, *input_shape)
y ~ client's label prior                (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)    (update_size,)

What compression (quantising, top-k, signs) takes from a gradient, fewer unknowns are to make up for; that an entry is
an interval, or was not sent, it does not know: a zero is believed. The paper's second half, generative networks that
enlarge and mend what was found, is left out: it is no belief of the gradient, and its weights are of photographs.

Source: Yue et al. 2022 (Gradient Obfuscation Gives a False Sense of Security in Federated Learning), section 4.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.errors import require_positive
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "adam", "beta2": 0.999, "decay": "cosine", "box": True, "starts": 1, "steps": 1000, "lr": 0.05}


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1, scale: int = 2) -> Tensor:
    """The generative program.

    Args:
        sigma: of the distance; where the maximum lies does not depend on it.
        scale: rows and columns of the image for each of the small one; their code, of photographs, has 4.
    """
    require_positive(scale=scale)
    channel, rows, columns = client.input_shape
    shape = (channel, -(-rows // scale), -(-columns // scale))
    small = pyro.sample("l", uniform(shape, batch_size, client.dtype, client.device))
    x = pyro.deterministic("x", enlarged(small, (rows, columns)))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))


def enlarged(small: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (…, channels, rows, columns) at another size, by bicubic interpolation."""
    images = torch.nn.functional.interpolate(small.reshape(-1, *small.shape[-3:]), size, mode="bicubic")
    return images.reshape(*small.shape[:-2], *size)
