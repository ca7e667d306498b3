"""Learning to obscure (Wan et al. 2022): the gradient of synthetic data that a network takes for the private ones.

    x* = argmin over x* of  ‖h(x*) − h(x)‖² / ‖h(x)‖² − trade · (1 − exp(−‖x* − x‖² / 2n far²)),     g = u(x*, y)

with h the features that the last linear layer takes. x* begins at a blend of x and noise (at noise: blend = 1), and
descends by Adam in the box [0, 1]; n are the pixels of the batch. What predicts the label is kept, and the rest not.

What x* tells of x a posterior says that was fitted to pairs of both on public images (`models/obscure.py`).

Source: Wan, Xu, Liu, Ren, Fan and Tang, Defense Against Gradient Leakage Attacks via Learning to Obscure Data, arXiv
2206.00769, of which the abstract was read: synthetic samples that are distinct from the original ones and preserve
their predictive features. That features are those before the last layer, the distance and all settings are choices
made here; so is that nothing is learned beyond the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.federation.defences import Attacks, _synthetic
from pplleak.federation.defences.soteria import defended

ATTACKS = Attacks("inverting_gradients", "Wan et al. 2022, DLG and its variants", "obscure")
TINY = 1e-30


def share(
    client: Client,
    x: Tensor,
    y: Tensor,
    *,
    trade: float = 0.02,
    far: float = 0.3,
    blend: float = 0.5,
    steps: int = 50,
    lr: float = 0.05,
) -> Tensor:
    """The gradient of the synthetic examples, (D,).

    Args:
        trade: what the distance from the image is worth beside that of the features, at least 0.
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
    """x* (*chains, B, *input_shape) of images of that shape; the labels y (*chains, B) do not matter."""
    _synthetic.require(client, blend, trade, far, steps, lr)
    with torch.no_grad():
        aim = features(client, x)
        whole = aim.square().sum((-2, -1)) + TINY

    def missed(made: Tensor) -> Tensor:
        return (features(client, made) - aim).square().sum((-2, -1)) / whole

    return _synthetic.made_of(client, x, missed, trade=trade, far=far, blend=blend, steps=steps, lr=lr)


def features(client: Client, x: Tensor) -> Tensor:
    """h (*chains, B, features) of images (*chains, B, *input_shape). Differentiable."""
    _, layer = defended(client, "")
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lead = x.shape[: -len(client.input_shape)]
    try:
        client.network(x.reshape(-1, *client.input_shape))
    finally:
        handle.remove()
    return seen[-1].reshape(*lead, -1)
