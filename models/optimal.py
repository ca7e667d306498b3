"""The Bayes-optimal adversary: any prior, behind any channel, on any client.

x ~ prior                                 (batch, *input_shape);    of a prior of each class, x | y
y ~ client's label prior                  (batch,)          (or, of vectors that nobody shared, a `target` (batch, K))
g | x, y ~ channel(u(x, y))               (update_size,);   u(x, y, ε) with ε ~ Normal(0, I) where a dropout is on

A client that shuffles has an `order` (epochs, batch) of its examples, uniform and summed out.

It knows p(x) and p(g | x), and no adversary has a lower risk than f*(g) = argmax over x₀ of ∫ over B(x₀, δ) of
p(x | g) dx. The prior is one of `pplleak.priors`, `vae` or `gaussian:floor=0.05` for example; the channel is
that of the observation, unless the adversary is told to believe in another one of `pplleak.channels`.

Source: Balunović et al. 2022, section 4.
"""

from __future__ import annotations

from typing import Literal

import pyro
from torch import Tensor

from pplleak import channels, priors
from pplleak.client import Client
from pplleak.client.loss import get
from pplleak.errors import BadInput
from pplleak.settings import Named


def model(
    client: Client,
    batch_size: int = 1,
    *,
    prior: str | Named = "gaussian",
    channel: str | Named = "gaussian",
    sigma: float | Literal["infer"] | None = None,
    reference: str | Tensor = "digits",
    reference_labels: Tensor | None = None,
    masks: bool = False,
) -> Tensor:
    """The generative program.

    Args:
        prior: what the adversary knows of the data: NAME or NAME:SETTING=VALUE,…, one of `pplleak ls`.
        channel: what it believes that the update went through, in the same form; an attack takes what is not given here
            from the observation.
        sigma: the channel's noise as the adversary believes it, in the gradient's own units, where it has one; infer:
            it is told nothing, and σ is a latent, log σ ~ Normal(log 0.01, 3²).
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        reference_labels: of a tensor of them, for a prior of each class.
        masks: the network's own dropout is in train mode, and its masks are latents (`pplleak.client.masks`); False
            believes in the whole network.
    """
    believed = channels.inferred(channels.check(Named.parse(channel).with_(sigma=sigma)))
    images = priors.make(Named.parse(prior), client, reference, reference_labels)
    if isinstance(images, priors.Conditional):
        if get(client.loss).targets != "classes":
            raise BadInput(f"the prior {prior} knows images by their class, and this client's targets are no classes")
        y = pyro.sample("y", client.label_prior(batch_size))
        x = images.of_class(y).sample(batch_size)
    else:
        x = images.sample(batch_size)
        y = pyro.sample("y", client.label_prior(batch_size))
    vectors = client.target_prior(batch_size)
    target = y if vectors is None else pyro.sample("target", vectors)
    orders = client.order_prior(batch_size)
    order = None if orders is None else pyro.sample("order", orders)
    noise = pyro.sample("noise", client.noise_prior(batch_size)) if masks else None
    u = client.update(x, target, noise, order)
    return pyro.sample("g", channels.make(believed, u, client, batch_size, reference))
