"""Mixing gradients over clients: the server sees the mean over several, as secure aggregation gives it.

    g = (1/K) (u(x, y) + Σ_{k=2}^K u(x_k, y_k))

with K − 1 other clients, each with a batch as large of images of its own. Only the sum leaves the clients (Bonawitz et
al. 2017): what hides an image is what the others happen to hold. The channel `aggregated` is what an adversary
believes who knows how others' updates are distributed.

Source: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.defences import Attacks
from pplleak.federation.defences._others import images_of

ATTACKS = Attacks("dlg", "none of its own; Deep Leakage from Gradients", "optimal:channel=aggregated")


def share(client: Client, x: Tensor, y: Tensor, *, clients: int = 2, others: str = "digits") -> Tensor:
    """The mean of this client's gradient and those of others, whose images are drawn at random, (D,).

    Args:
        clients: K, how many share one mean, this one included.
        others: whose images the other clients hold: digits, mnist, cifar10 or a FOLDER ($PPLLEAK_DATA_ROOT).
    """
    if clients < 1:
        raise BadInput(f"mix takes at least 1 client (this one), not {clients}")
    images = images_of(others, client)
    total = client.update(x, y, client.noise(len(y))).materialise()
    if clients > 1:
        picks = torch.randint(len(images), (clients - 1, len(y)))
        theirs = images.x[picks].to(client.device), images.y[picks].to(client.device)
        total = total + client.update(*theirs).materialise().sum(0)
    return total / clients
