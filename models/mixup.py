"""Bayes-optimal behind mixup and InstaHide: who was mixed in, how much of each, and every sign are latent variables.

z ~ Normal(0, I)                            (batch, rank)
x = mean + factor z                         (batch, *input_shape)
y ~ client's label prior                    (batch,)
z′ ~ Normal(0, I), x′ = mean + factor z′    (batch, k − 1, rank) and (batch, k − 1, *input_shape): the partners
y′ ~ client's label prior                   (batch (k − 1),)
λ ~ Dirichlet(alpha, …, alpha)              (batch, k)
ε ~ Normal(0, I),  s = sign ε               (batch, *input_shape), with InstaHide's signs alone
g | x, y ~ Normal(u(x̃(x, x′, λ, s), q), sigma²)   (update_size,);   x̃ and q as in `pplleak.federation.defences.mixup`

The partners' labels are summed out; `transformed` is x̃, and `target` q. The gradient tells x̃ and q as well as it tells
the image and the label of any client; which part of x̃ is the private image only the priors say. The signs change the
density by jumps, and the slope in ε is that of a smooth one. Of a public seed the server draws weights, partners and
signs as the client did: they are then no latents.

Source: Balunović et al. 2022, section 4 (the optimal adversary), for the mixtures of Huang et al. 2020. The attack of
Carlini et al. 2021 on InstaHide's published images (|2 x̃ − 1| is free of the signs) needs many of them; this one has a
single gradient.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.federation.defences import mixup
from pplleak.priors.gaussian import fit_gaussian, standard_normal
from pplleak.priors.labels import Labels

MAP = {"starts": 4, "lr": 0.1}  # the images of a mixture may change places


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    images: int = 2,
    alpha: float = 1.0,
    signs: bool = False,
    others: str = "digits",
    public_seed: int = mixup.SECRET,
    reference: str | Tensor = "digits",
    floor: float = 0.02,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        images: k, how many images are mixed, the private one included.
        alpha: of the weights' Dirichlet law.
        signs: every pixel is flipped about grey with probability one half (InstaHide).
        others: whose images are mixed in; of a public seed these very ones, else as the prior has them.
        public_seed: of what the client draws, where the server has it, too; -1: it has not.
        reference: the public images the prior is fitted to: digits, mnist, cifar10 or a FOLDER (or a tensor).
        floor: standard deviation, in pixel units, that even a constant pixel keeps.
    """
    mixup.require(client, images, alpha, public_seed)
    prior = fit_gaussian(data.reference(reference, client.input_shape), floor=floor, dtype=client.dtype)
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    if public_seed != mixup.SECRET:
        made = mixup.draws(
            client, batch_size, images=images, alpha=alpha, signs=signs, others=others, public_seed=public_seed
        )
        partners, labels, weights, flips = made.partners, made.labels, made.weights, made.signs
    else:
        one = torch.ones((), dtype=client.dtype, device=client.device)
        rest = images - 1
        partners = prior.decode(pyro.sample("partners", standard_normal(one, batch_size, rest, prior.rank)))
        law = dist.Dirichlet(alpha * one.expand(images)).expand([batch_size]).to_event(1)
        weights = pyro.sample("weights", law).to(client.dtype)
        classes = Labels(torch.zeros(client.labels, dtype=client.dtype, device=client.device), batch_size * rest)
        labels = pyro.sample("labels", classes).unflatten(-1, (batch_size, rest))
        flips = one.expand(batch_size, *client.input_shape)
        if signs:
            flips = mixup.signs_of(pyro.sample("signs", standard_normal(one, *flips.shape)))
    transformed = pyro.deterministic("transformed", mixup.mix(x, partners, weights, flips))
    target = pyro.deterministic("target", mixup.targets(client, y, labels, weights))
    return pyro.sample("g", channels.Gaussian(client.update(transformed, target), sigma))
