"""Bayes-optimal behind repeated labels: the companions of an example are more images of its class.

z ~ Normal(0, I), x = mean + factor z       (batch, rank) and (batch, *input_shape)
y ~ client's label prior                    (batch,)
z′ ~ Normal(0, I), x′ = mean + factor z′    (batch, k − 1, rank) and (batch, k − 1, *input_shape): the companions
g | x, y ~ Normal(u([x, x′], [y, …, y]), sigma²)   (update_size,);   as in `pplleak.federation.defences.same_label`

The companions have the law of the image itself, and the likelihood is that of a set: which of k images found is the
private one nothing tells, and the posterior has a mode for each. `transformed` are all k, `target` their labels.

Source: Balunović et al. 2022, section 4 (the optimal adversary), for the batches of Li et al. 2024.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.federation.defences import same_label
from pplleak.priors.gaussian import fit_gaussian, standard_normal

MAP = {"starts": 4, "lr": 0.1}  # the images of a class may change places


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    repeats: int = 4,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        repeats: k, examples of each label, the private one included.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    same_label.require(client, repeats)
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    one = torch.ones((), dtype=client.dtype, device=client.device)
    law = standard_normal(one, batch_size, repeats - 1, prior.rank)
    companions = prior.decode(pyro.sample("companions", law))
    images, labels = same_label.together(client, x, companions, y)
    transformed = pyro.deterministic("transformed", images)
    target = pyro.deterministic("target", labels)
    return pyro.sample("g", channels.Gaussian(client.update(transformed, target), sigma))
