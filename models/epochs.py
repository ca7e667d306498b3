"""Data Leakage in FedAvg (Dimitrov et al. 2022): images of their own for every epoch, which are alike as sets.

c_e ~ Uniform(0, 1), e = 1 … epochs                                    (epochs, batch, *input_shape)
p(c) ∝ exp(−kappa (alike Σ_{e<f} ‖h(c_e) − h(c_f)‖² + alpha TV(c)))    h: the mean image, whatever the order
x = the mean of the copies, each in the order nearest to the first     (batch, *input_shape)
y ~ client's label prior                                               (batch,)
g / ‖g‖ | x, y ~ von Mises-Fisher(u(c, y) / ‖u(c, y)‖, kappa)          (update_size,);   epoch e is trained on c_e

Who does not know the order in which a client shuffles its examples need not search it: every epoch has images of its
own, in the order in which it takes them, and only what does not depend on that order ties them together. The distances
of h are means over pixels and pairs, TV over all pixels. The labels are in the same order in all epochs, which is
wrong of a client that shuffles, as it is in the paper's; a client of one gradient has one copy.

Source: Dimitrov, Balunović, Konstantinov, Vechev 2022 (Data Leakage in Federated Averaging), section 4 (epoch prior).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.priors.tv import TotalVariation
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "adam", "beta2": 0.999, "decay": "cosine", "box": True, "starts": 1, "steps": 1000, "lr": 0.1}


def model(
    client: Client, batch_size: int = 1, *, kappa: float = 1e4, alpha: float = 1e-6, alike: float = 1e-2
) -> Tensor:
    """The generative program.

    Args:
        kappa: how closely directions agree; it scales all of the attack's loss alike.
        alpha: weight of the total variation a pixel, beside a cosine.
        alike: weight of the distance between the epochs' mean images, beside a cosine.
    """
    count, trained = unrolled(client, batch_size)
    pixels = count * batch_size * math.prod(client.input_shape)
    flat = pyro.sample("c", uniform(client.input_shape, count * batch_size, client.dtype, client.device))
    means = flat.unflatten(-len(client.input_shape) - 1, (count, batch_size)).mean(-len(client.input_shape) - 1)
    spread = means.flatten(-len(client.input_shape)).var(-2, correction=0).mean(-1)  # half the mean over pairs
    pyro.factor("alike", -kappa * (2 * alike * spread + alpha / pixels * TotalVariation(1.0).energy(flat)))
    pyro.deterministic("x", pooled(flat, count, len(client.input_shape)), event_dim=len(client.input_shape) + 1)
    y = pyro.sample("y", client.label_prior(batch_size))
    u = trained.update(flat, torch.cat([y] * count, -1))
    return pyro.sample("g", channels.Directional(u, kappa=kappa))


def unrolled(client: Client, batch_size: int) -> tuple[int, Client]:
    """The number of epochs, and the client that trains once on as many copies, which is the same.

    Raises:
        BadInput: its epochs end in a short batch, or its learning rate follows a schedule.
    """
    local = client.local
    if local is None or local.epochs is None:
        return 1, client
    size = local.batch_size or batch_size
    if batch_size % size or local.schedule.name != "constant":
        raise BadInput(f"the model epochs unrolls epochs of whole batches at one learning rate: {batch_size} examples "
                       f"are no multiple of {size}, or there is a schedule; take optimal")  # fmt: skip
    return local.epochs, replace(client, local=replace(local, epochs=1, batch_size=size, shuffle=False))


@torch.no_grad()
def pooled(flat: Tensor, count: int, dims: int) -> Tensor:
    """The mean of the copies (*chains, count · batch, *input_shape), each matched to the first: (*chains, batch, …)."""
    from scipy.optimize import linear_sum_assignment  # where it is used: slow to import

    copies = flat.unflatten(-dims - 1, (count, -1))
    lead, size = copies.shape[: -dims - 2], copies.shape[-dims - 1]
    rows = copies.reshape(-1, count, size, math.prod(copies.shape[-dims:])).double().cpu()
    costs = torch.cdist(rows[:, :1].expand_as(rows), rows).nan_to_num(1e9).numpy()
    orders = np.stack([[linear_sum_assignment(c)[1] for c in chain] for chain in costs])
    picked = torch.as_tensor(orders)[..., None].expand(rows.shape)
    mean = rows.gather(2, picked).mean(1)
    return mean.to(flat).reshape(*lead, size, *copies.shape[-dims:])
