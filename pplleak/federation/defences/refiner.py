"""Refiner (Fan et al. 2024): the gradient of refined data, whose update is near and which looks like something else.

    w_i = |θ_i u_i(x, y)|,     U(x*) = Σ_i w_i (u_i(x*, y) − u_i(x, y))² / Σ_i w_i u_i(x, y)²
    x* = argmin over x* of  U(x*) − trade · (1 − exp(−‖x* − x‖² / 2n far²)),     g = u(x*, y)

begun at a blend of x and noise, x*₀ = (1 − blend) x + blend ν, and descended by Adam in the box [0, 1]. n are the
pixels of the batch. w is the first-order change of the loss when a parameter is removed: the update of key parameters
is kept.

What x* tells of x a posterior says that was fitted to pairs of both on public images (`models/refiner.py`).

Source: Fan, Chen, Wang, Li and Zhou, Refiner: Data Refining against Gradient Leakage Attacks in Federated Learning,
USENIX Security 2025 (arXiv 2212.02042), of which abstract and introduction were read: a utility metric that keeps the
gradients of key parameters, and a privacy metric that leads away from the data. The paper's privacy metric is an
evaluation network, trained to tell how much noise is in an image; here it is the distance in pixels, which saturates.
Weights of layers are left out; the form of w is from memory, and the settings are choices made here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.federation.defences import Attacks, _synthetic

ATTACKS = Attacks("inverting_gradients", "Fan et al. 2024", "refiner")
TINY = 1e-30


def share(
    client: Client,
    x: Tensor,
    y: Tensor,
    *,
    trade: float = 0.1,
    far: float = 0.3,
    blend: float = 0.5,
    steps: int = 50,
    lr: float = 0.03,
) -> Tensor:
    """The gradient of the refined examples, (D,).

    Args:
        trade: what the distance from the image is worth beside the update's, at least 0.
        far: the distance at which it begins to saturate, root-mean-square of a pixel.
        blend: the share of noise in what it begins with, in (0, 1].
        steps: of the descent.
        lr: of its Adam, in pixel units.
    """
    return client.update(
        synthetic(client, x.to(client.dtype), y, trade=trade, far=far, blend=blend, steps=steps, lr=lr), y
    ).materialise()


def synthetic(
    client: Client, x: Tensor, y: Tensor, *, trade: float, far: float, blend: float, steps: int, lr: float
) -> Tensor:
    """x* (*chains, B, *input_shape) of images of that shape, and labels y (*chains, B)."""
    _synthetic.require(client, blend, trade, far, steps, lr)
    with torch.no_grad():
        aim = client.update(x, y).materialise()
        theta = torch.cat([p.detach().flatten() for p in client.parameters.values()])
        weight = (theta * aim).abs()
        whole = (weight * aim.square()).sum(-1) + TINY

    def missed(made: Tensor) -> Tensor:
        return (weight * (client.update(made, y).materialise() - aim).square()).sum(-1) / whole

    return _synthetic.made_of(client, x, missed, trade=trade, far=far, blend=blend, steps=steps, lr=lr)
