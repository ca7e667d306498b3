"""The convolutional bottleneck: its gradient is that of its loss, and its noise a latent of the model that knows it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import batch_of
from torch import Tensor, nn

from pplleak.client import Client, networks, seeded
from pplleak.errors import BadInput
from pplleak.federation.defences import cvb


def bottlenecked() -> Client:
    """A client with K = 2 behind its first convolution, in float64; a large beta, so that its KL matters."""

    def build() -> nn.Module:
        base = networks.get("convnet")((1, 4, 4), 3, channels=(2, 2), width=4, activation="gelu")
        return cvb.network(base, (1, 4, 4), 3, size=2, beta=0.3)

    return Client(seeded(build, 0).double(), (1, 4, 4), 3)


def by_hand(client: Client, x: Tensor, y: Tensor, noise: Tensor, *, kl: bool = True) -> Tensor:
    """∇θ of the mean loss, layer by layer with torch's own KL, by plain autograd."""
    made = copy.deepcopy(client.network).requires_grad_()
    assert isinstance(made, cvb.CVB)
    layers = list(made.base.children())
    at = next(k for k, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
    h = nn.Sequential(*layers[: at + 1])(x)
    mean, raw = made.encoder(h).chunk(2, 1)
    q = torch.distributions.Normal(mean, nn.functional.softplus(raw))
    logits = nn.Sequential(*layers[at + 1 :])(made.decoder(q.loc + q.scale * noise))
    loss = nn.functional.cross_entropy(logits, y)
    if kl:
        unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        divergence = torch.distributions.kl_divergence(q, unit).mean((2, 3)).sum(1) / math.log(2)
        loss = loss + 0.3 * divergence.mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(made.parameters()))])


def test_the_gradient_behind_it_is_that_of_its_loss() -> None:
    client = bottlenecked()
    assert client.lazy and client.noise_shape is not None and client.noise_shape[0] == 2
    x, y = batch_of(client, size=2)
    noise = torch.randn(2, *client.noise_shape, dtype=torch.float64)
    expected = by_hand(client, x, y, noise)
    torch.testing.assert_close(client.update(x, y, noise).materialise(), expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(expected, by_hand(client, x, y, noise, kl=False), rtol=1e-3)
    assert not torch.allclose(expected, client.update(x, y).materialise(), rtol=1e-3)


def test_its_noise_reaches_the_gradient_of_every_layer() -> None:
    client = bottlenecked()
    x, y = batch_of(client)
    assert client.noise_shape is not None
    draws = torch.randn(5, 1, *client.noise_shape, dtype=torch.float64)
    spread = client.split(client.update(x, y, draws).materialise().std(0))
    assert all(part.abs().max() > 1e-6 for part in spread.values())


def test_a_network_without_a_convolution_or_with_one_used_twice_is_refused() -> None:
    with pytest.raises(BadInput, match="the network has none"):
        cvb.network(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 3)
    shared = nn.Conv2d(1, 1, 1)
    with pytest.raises(BadInput, match="is used 2 times"):
        cvb.network(nn.Sequential(shared, shared, nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 3)
    with pytest.raises(BadInput, match="size must be a positive"):
        cvb.network(nn.Sequential(shared, nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 3, size=0)
