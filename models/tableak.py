"""TabLeak (Vero et al. 2023): relaxed records, categories as softmax, and a direction near that of the update.

l ~ Normal(0, I)                                                (batch, width)
x_block = softmax(l_block) of each categorical column;   x_j = low_j + (high_j − low_j) sigmoid(l_j) of a number, with
          the range of its public rows;   x_j = sigmoid(l_j) of a flag that says that it is missing
y ~ client's label prior                                        (batch,)
g / ‖g‖ | x, y ~ von Mises-Fisher(u(x, y) / ‖u(x, y)‖, kappa)   (update_size,)

The attack minimises 1 − cos(u(x, y), g) by Adam on the signs of the slopes, 30 times from random starts (uniform on
[−1, 1], in their code; here the prior's draws, which it weighs as nothing beside kappa), and pools the ends: that is
the inference `ensemble`. It has no prior of records.

Source: Vero, Balunović, Dimitrov, Vechev 2023 (TabLeak: Tabular data leakage in federated learning), section 4; their
code's experiment 46 gives the settings.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client

MAP = {"optimizer": "signed_adam", "beta2": 0.999, "decay": "none", "starts": 30, "steps": 1500, "lr": 0.06}


def model(client: Client, batch_size: int = 1, *, kappa: float = 1e6) -> Tensor:
    """The generative program.

    Args:
        kappa: how closely directions agree; it scales all of the attack's loss alike.
    """
    one = torch.ones(batch_size, *client.input_shape, dtype=client.dtype, device=client.device)
    logits = pyro.sample("l", dist.Normal(0 * one, one).to_event(one.dim()))
    x = pyro.deterministic("x", relaxed(client, logits))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Directional(client.update(x, y), kappa=kappa))


def relaxed(client: Client, logits: Tensor) -> Tensor:
    """l (…, width) as a relaxed record x (…, width). Data that are no table stay as they are."""
    if client.columns is None:
        return logits
    parts = []
    for column in client.columns.varying:
        part = logits[..., client.columns.starts[column.name] :][..., : column.width]
        if column.kind == "categorical":
            parts.append(part.softmax(-1))
        else:
            low, high = ((end - column.mean) / column.sd for end in (column.low, column.high))
            parts += [low + (high - low) * part[..., :1].sigmoid(), part[..., 1:].sigmoid()]
    return torch.cat(parts, -1)
