"""Small networks with kinks, their observations, and the fields of walls and gates that billiard moves in."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pplleak.client import Client, networks, seeded
from pplleak.density import build
from pplleak.density.kinks import walls
from pplleak.density.kinks.gates import gated
from pplleak.density.whitening import Laplace
from pplleak.federation.observation import Observation
from pplleak.inference import billiard
from pplleak.models import optimal

SHAPE, DIM = (1, 2, 2), 4
IMAGES = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(1))  # one tensor: cached by identity


def convolutional(*, activation: str = "relu", pool: str = "avg") -> nn.Module:
    """The paper's CNN in small: convolution, pooling, a dense layer; weights large enough for kinks to matter."""
    act = {"relu": nn.ReLU, "leaky_relu": partial(nn.LeakyReLU, 0.3)}[activation]
    pooling = {"avg": nn.AvgPool2d(2), "max": nn.MaxPool2d(2)}[pool]
    layers = (nn.Conv2d(1, 4, 3, padding=1), act(), pooling, nn.Flatten(), nn.Linear(4, 12), act(), nn.Linear(12, 3))
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(2.5)
    return network


def deep() -> nn.Module:
    """Two dense layers with walls behind the convolution."""
    wide = (nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    return nn.Sequential(*convolutional()[:6], *seeded(lambda: nn.Sequential(*wide), 5)).double()


def curved() -> nn.Module:
    """Smooth before the dense layer, whose walls are then smooth and curved, and no gate blurs the energy."""
    network = convolutional()
    network[1] = nn.GELU()
    return network


NETWORKS = {
    "conv": convolutional,
    "leaky conv, max pooling": partial(convolutional, activation="leaky_relu", pool="max"),
    "curved walls": curved,
    "two dense": lambda: networks.get("mlp")(SHAPE, 3, widths=(6, 5), activation="relu").double(),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
ungated = pytest.mark.parametrize("network", [NETWORKS["curved walls"], NETWORKS["two dense"]])


def attack(network, sigma=0.3):  # type: ignore[no-untyped-def]
    client = Client(seeded(network, 0), SHAPE, 3)
    generator = torch.Generator().manual_seed(2)
    y = torch.tensor([1])
    u = client.update(IMAGES[:1].to(client.dtype), y).materialise().double()
    g = u + sigma * torch.randn(u.shape, generator=generator, dtype=torch.float64)
    model = partial(optimal.model, sigma=sigma, reference=IMAGES, prior="gaussian:floor=0.4")
    return model, Observation(g.to(client.dtype), 1, y), client


def aimed(network, sigma=0.3, beta=20.0):  # type: ignore[no-untyped-def]
    """The field in some whitened coordinates with a dense factor."""
    model, observed, client = attack(network, sigma)
    generator = torch.Generator().manual_seed(3)
    factor = 0.8 * torch.eye(DIM) + 0.1 * torch.randn(DIM, DIM, generator=generator)
    laplace = Laplace(torch.randn(DIM, generator=generator).double(), factor.double(), 0.0, 0)
    return billiard.soften(build(model, client, observed), gated(client, beta), laplace)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cheaply(field: walls.Field) -> walls.Field:
    """The same field with ΔV from the late layers, whatever that leaves out."""
    assert field.gates.late is not None
    density = replace(field.soft, client=field.gates.late)
    units = field.walls(torch.zeros(1, DIM).double()).shape[1]
    return replace(field, late=walls.LateJumps(density, 1.0, torch.zeros(units).double()))
