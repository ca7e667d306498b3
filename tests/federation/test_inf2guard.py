"""Inf2Guard: its gradient is that of its loss, its bound is one on the information, and its noise is a latent."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import LIMIT, batch_of, chains_of, misfit
from scenes import from_data
from torch import Tensor, nn

from pplleak import density, programs
from pplleak.client import Client, networks, seeded
from pplleak.errors import BadInput
from pplleak.federation.defences import inf2guard
from pplleak.studies.attack.attack import believe

SIGMA = 0.2


def guarded(network: str = "mlp", beta: float = 0.3) -> Client:
    """A client in float64; a large beta, so that its bound matters."""
    settings = {"widths": (4,)} if network == "mlp" else {"channels": (2, 2), "width": 4, "activation": "gelu"}

    def build() -> nn.Module:
        base = networks.get(network)((1, 4, 4), 3, **settings)
        return inf2guard.network(base, (1, 4, 4), 3, noise=0.7, beta=beta)

    return Client(seeded(build, 0).double(), (1, 4, 4), 3)


def by_hand(client: Client, x: Tensor, y: Tensor, noise: Tensor, *, kl: bool = True) -> Tensor:
    """∇θ of the mean loss, layer by layer with torch's own KL, by plain autograd."""
    made = copy.deepcopy(client.network).requires_grad_()
    assert isinstance(made, inf2guard.Guarded)
    *before, last = made.base.children()
    r = nn.Sequential(*before)(x)
    q = torch.distributions.Normal(r, nn.functional.softplus(made.width.raw).expand_as(r))
    loss = nn.functional.cross_entropy(last(q.loc + q.scale * noise), y)
    if kl:
        unit = torch.distributions.Normal(torch.zeros_like(r), torch.ones_like(r))
        loss = loss + 0.3 * torch.distributions.kl_divergence(q, unit).sum(1).mean() / math.log(2)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(made.parameters()))])


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_the_gradient_behind_it_is_that_of_its_loss(network: str) -> None:
    client = guarded(network)
    assert client.lazy and client.noise_shape == (4,)
    x, y = batch_of(client, size=2)
    noise = torch.randn(2, 4, dtype=torch.float64)
    expected = by_hand(client, x, y, noise)
    torch.testing.assert_close(client.update(x, y, noise).materialise(), expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(expected, by_hand(client, x, y, noise, kl=False), rtol=1e-3)
    assert not torch.allclose(expected, client.update(x, y).materialise(), rtol=1e-3)


def test_its_noise_reaches_the_gradient_of_every_layer() -> None:
    client = guarded()
    x, y = batch_of(client)
    draws = torch.randn(5, 1, 4, dtype=torch.float64)
    spread = client.split(client.update(x, y, draws).materialise().std(0))
    assert all(part.abs().max() > 1e-6 for part in spread.values())


def bounds(variance: float) -> Tensor:
    """KL in nats, (N,), of representations r ~ Normal(0, variance) of one feature behind σ = 0.6."""
    base = nn.Sequential(nn.Identity(), nn.Linear(1, 2))
    made = inf2guard.Guarded(base, "1", 0.6, beta=math.log(2)).double()
    r = math.sqrt(variance) * torch.randn(8000, 1, dtype=torch.float64)
    return made(r, torch.zeros_like(r))[1].detach()


def test_its_bound_is_the_information_where_the_noisy_representation_is_standard_normal_and_more_elsewhere() -> None:
    """I(r; r') = ½ log(1 + v/σ²) of a normal r: the bound is tight at v + σ² = 1."""
    tight, loose = (0.5 * math.log(1 + v / 0.36) for v in (0.64, 3.0))
    assert misfit(chains_of(bounds(0.64)), tight) <= LIMIT
    assert float(bounds(3.0).mean()) > loose
    assert misfit(chains_of(bounds(3.0)), loose) > LIMIT  # the wrong twin: another variance is no equality


def test_training_lowers_what_the_representation_says_of_its_input() -> None:
    """Its bound, in nats, after so many steps on the loss; the twin, for which a bit costs nothing, gains some."""

    def after(beta: float, steps: int) -> float:
        client = guarded(beta=beta)
        network = copy.deepcopy(client.network).requires_grad_()
        adam = torch.optim.Adam(network.parameters(), 0.02)
        x, y = batch_of(client, size=20)
        torch.manual_seed(0)
        for _ in range(steps):
            logits, penalty = network(x, torch.randn(20, 4, dtype=torch.float64))
            (nn.functional.cross_entropy(logits, y) + penalty.mean()).backward()
            adam.step()
            adam.zero_grad()
        return float(network(x, torch.zeros(20, 4, dtype=torch.float64))[1].detach().mean() / beta)

    begun = after(1.0, 0)
    assert after(1.0, 100) < 0.5 * begun
    assert after(1e-6, 100) > begun


def test_behind_it_the_noise_is_a_latent_variable() -> None:
    target = from_data(settings={"widths": (6,)}, defence="inf2guard", sigma=SIGMA, dtype="float64")
    client, y = target.client, target.labels
    assert y is not None
    built = density.build(believe(programs.load("models", "precode"), target), client, target)
    z = built.sample_prior(4)
    values, _ = built.constrain(z)
    x = built.images(z)[0]

    def expected(noise: Tensor | None) -> Tensor:
        u = client.materialised(x, y.expand(4, -1), noise).materialise()
        return -0.5 * (target.g - u).square().sum(-1) / SIGMA**2

    torch.testing.assert_close(built.terms(z)[1].diff(), expected(values["noise"]).diff())
    assert not torch.allclose(expected(values["noise"]).diff(), expected(None).diff(), rtol=1e-3)


@pytest.mark.parametrize(("settings", "said"), [({"noise": 0.0}, "noise must be"), ({"beta": -1.0}, "beta must be")])
def test_what_it_cannot_be_set_to_is_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        from_data(defence="inf2guard", defence_settings=settings)
