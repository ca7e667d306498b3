"""Billiard HMC: gates are exact in value, walls are met and crossed reversibly, draws are those of the posterior."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import arviz
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplleak import clients, networks
from pplleak import density as densities
from pplleak.density import Density
from pplleak.errors import BadInput
from pplleak.gates import gated
from pplleak.inference import _billiard, billiard
from pplleak.inference.laplace import Laplace
from pplleak.models import dlg, gaussian
from pplleak.observation import Observation

SHAPE, DIM = (1, 2, 2), 4
IMAGES = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(1))  # one tensor: cached by identity


def convolutional(*, activation: str = "relu", pool: str = "avg") -> nn.Module:
    """The paper's CNN in small: convolution, pooling, a dense layer; weights large enough for kinks to matter."""
    act = {"relu": nn.ReLU, "leaky_relu": partial(nn.LeakyReLU, 0.3)}[activation]
    pooling = {"avg": nn.AvgPool2d(2), "max": nn.MaxPool2d(2)}[pool]
    layers = (nn.Conv2d(1, 4, 3, padding=1), act(), pooling, nn.Flatten(), nn.Linear(4, 6), act(), nn.Linear(6, 3))
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(2.5)
    return network


NETWORKS = [
    partial(convolutional),
    partial(convolutional, activation="leaky_relu", pool="max"),
    lambda: networks.mlp(SHAPE, 3, widths=(6, 5), activation="relu").double(),
]
each_network = pytest.mark.parametrize("network", NETWORKS, ids=["conv", "leaky conv, max pooling", "two dense"])


def attack(network, sigma=0.3):  # type: ignore[no-untyped-def]
    client = clients.build(clients.seeded(network, 0), SHAPE, 3)
    generator = torch.Generator().manual_seed(2)
    y = torch.tensor([1])
    u = client.update(IMAGES[:1].to(client.dtype), y).materialise().double()
    g = u + sigma * torch.randn(u.shape, generator=generator, dtype=torch.float64)
    model = partial(gaussian.model, sigma=sigma, reference=IMAGES, floor=0.4)
    return model, Observation(g.to(client.dtype), 1, y), client


def aimed(network, sigma=0.3, beta=20.0):  # type: ignore[no-untyped-def]
    """The field in some whitened coordinates with a dense factor."""
    model, observed, client = attack(network, sigma)
    generator = torch.Generator().manual_seed(3)
    factor = 0.5 * torch.eye(DIM) + 0.1 * torch.randn(DIM, DIM, generator=generator)
    laplace = Laplace(torch.randn(DIM, generator=generator).double(), factor.double(), 0.0, 0)
    return billiard.build(densities.build(model, client, observed), gated(client, beta), laplace)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_network
def test_gates_keep_the_value_and_tend_to_the_true_update(network) -> None:  # type: ignore[no-untyped-def]
    _, _, client = attack(network)
    x, y = normal(20, 1, *SHAPE, seed=4), torch.tensor([1])
    errors = []
    for beta in (20.0, 200.0, 1e5):
        gates = gated(client, beta)
        h = gates.preactivations(client.network, x)
        gates.hold(h > 0)
        torch.testing.assert_close(gates.client.network(x[:, 0]), client.network(x[:, 0]))
        gap = gates.client.update(x, y).materialise() - client.update(x, y).materialise()
        errors.append(float(gap.square().mean().sqrt()))
    assert errors[2] < 1e-6
    if any(isinstance(m, nn.Conv2d) for m in client.network):
        assert errors[0] > errors[1] > errors[2]
    gates.hold(~(h > 0))  # wrong twin: the other side of every wall
    assert not torch.allclose(gates.client.update(x, y).materialise(), client.update(x, y).materialise(), atol=0.1)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (1, 2), (1, 0))])
def test_soft_max_pooling_has_the_pools_value_and_in_the_limit_its_slope(pool: nn.MaxPool2d) -> None:
    from pplleak.gates import SoftMaxPool

    x = normal(2, 3, 7, 6, seed=5).requires_grad_()
    v = torch.randn_like(pool(x))
    (expected,) = torch.autograd.grad((pool(x) * v).sum(), x)
    soft = SoftMaxPool(pool, 1e6)
    torch.testing.assert_close(soft(x), pool(x))
    torch.testing.assert_close(torch.autograd.grad((soft(x) * v).sum(), x)[0], expected)
    (soft_slope,) = torch.autograd.grad((SoftMaxPool(pool, 1.0)(x) * v).sum(), x)
    assert not torch.allclose(soft_slope, expected, atol=0.1)


@each_network
def test_the_next_wall_is_the_first_one(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network)
    w, p = normal(64, DIM, seed=6), normal(64, DIM, seed=7)
    h, h_end = field.walls(w), field.walls(w + p)
    hit = _billiard.beyond(h_end, h > 0).any(1)
    assert int(hit.sum()) > 20
    w, p, h, h_end = w[hit], p[hit], h[hit], h_end[hit]
    t, unit, failed = _billiard.next_wall(field, w, p, torch.ones(len(w)).double(), h > 0, h, h_end)
    assert not failed.any()
    at = field.walls(w + t[:, None] * p)
    assert float(at.gather(1, unit[:, None]).abs().max()) < 1e-10
    before = torch.stack([(field.walls(w + f * t[:, None] * p) > 0) == (h > 0) for f in np.linspace(0, 0.999, 200)])
    share = before.all(0).all(1).double().mean()
    assert share > 0.97  # but for a wall that is crossed twice on the way, no unit switches earlier


@each_network
def test_reversible_and_patterns_agree_with_the_position(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network)
    state, p = _billiard.place(field, normal(64, DIM, seed=7)), normal(64, DIM, seed=8)

    def travel(start: _billiard.State, p: Tensor) -> tuple[_billiard.State, Tensor, Tensor, Tensor]:
        w, h, pattern, force = start.w, start.h, start.pattern, start.force
        met, lost = torch.zeros(64, dtype=torch.long), torch.zeros(64, dtype=torch.bool)
        for _ in range(6):
            d = _billiard.drift(field, w, p - 0.1 * force, h, pattern, 0.2, 1.0)
            w, h, pattern, force = d.w, d.h, d.pattern, field.force(d.w, d.pattern, 1.0)
            p, met, lost = d.p - 0.1 * force, met + d.met, lost | d.lost
        return _billiard.State(w, field.energy(w, 1.0), force, h, pattern), p, met, lost

    end, q, met, lost = travel(state, p)
    assert int(met.sum()) > 100 and int((end.pattern != state.pattern).sum()) > 20 and int(lost.sum()) == 0
    again = _billiard.place(field, end.w)
    assert torch.equal(again.pattern, end.pattern)
    back, r, back_met, _ = travel(again, -q)
    torch.testing.assert_close(back.w, state.w, rtol=0, atol=1e-8)
    torch.testing.assert_close(-r, p, rtol=0, atol=1e-8)
    assert torch.equal(back_met, met) and torch.equal(back.pattern, state.pattern)
