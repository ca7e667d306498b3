"""The channel p(g | u): its density is the textbook one, its draws follow it, and it never asks for ∇θ without need."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from conftest import LIMIT, assert_moments, batch_of, chains_of, misfit, tiny
from pyro.infer import Predictive
from torch import Tensor

from pplleak import channels
from pplleak.errors import BadInput
from pplleak.updates import LazyUpdate

SIGMA = 0.3


def textbook(g: Tensor, u: Tensor, sigma: float | Tensor) -> Tensor:
    return torch.distributions.Normal(u, sigma).log_prob(g).sum(-1)


def some_g(size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3)], ids=str)
def test_log_density_is_that_of_independent_normals(lead: tuple[int, ...]) -> None:
    client = tiny()
    update = client.update(*batch_of(client, lead, 2))
    g = some_g(client.update_size)
    found = channels.Gaussian(update, SIGMA).log_prob(g)
    torch.testing.assert_close(found, textbook(g, update.materialise(), SIGMA), rtol=1e-10, atol=0)


def test_one_observation_a_chain_has_the_same_density() -> None:
    client = tiny()
    update = client.update(*batch_of(client, (3,)))
    g = torch.randn(3, client.update_size, dtype=torch.float64)
    found = channels.Gaussian(update, SIGMA).log_prob(g)
    torch.testing.assert_close(found, textbook(g, update.materialise(), SIGMA), rtol=1e-10, atol=0)


def test_density_and_its_gradient_never_materialise_a_lazy_update(monkeypatch: pytest.MonkeyPatch) -> None:
    client = tiny()
    x, y = batch_of(client, (3,))

    def refuse(self: LazyUpdate) -> Tensor:
        raise AssertionError("materialised")

    monkeypatch.setattr(LazyUpdate, "materialise", refuse)
    value = channels.Gaussian(client.update(x.requires_grad_(), y), SIGMA).log_prob(some_g(client.update_size))
    assert torch.autograd.grad(value.sum(), x)[0].abs().min() > 0
    with pytest.raises(AssertionError, match="materialised"):
        channels.Gaussian(client.update(x, y), SIGMA).sample()


def test_draws_are_the_update_plus_noise_of_width_sigma() -> None:
    client = tiny("linear", zero=False)
    update = client.update(*batch_of(client))
    draws = channels.Gaussian(update, SIGMA).sample(torch.Size([4000]))
    assert_moments(chains_of(draws), update.materialise(), torch.full((client.update_size,), SIGMA))


def test_chains_draw_independent_noise() -> None:
    client = tiny("linear", zero=False)
    x, y = batch_of(client)
    u = client.update(x, y).materialise()
    g = channels.Gaussian(client.update(x, y).expand(torch.Size([4000, 2])), SIGMA).sample()
    products = ((g - u)[:, 0] * (g - u)[:, 1]) / SIGMA**2
    assert misfit(chains_of(products), torch.zeros(client.update_size)) <= LIMIT
    same = ((g - u)[:, 0] * (g - u)[:, 0]) / SIGMA**2
    assert misfit(chains_of(same), torch.zeros(client.update_size)) > LIMIT


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
def test_expanding_repeats_the_density(lead: tuple[int, ...]) -> None:
    client = tiny()
    channel = channels.Gaussian(client.update(*batch_of(client, lead)), SIGMA)
    grown = channel.expand(torch.Size((2, *lead)))
    g = some_g(client.update_size)
    assert grown.batch_shape == (2, *lead)
    assert grown.event_shape == (client.update_size,)
    assert torch.equal(grown.log_prob(g), channel.log_prob(g).expand(2, *lead))


@pytest.mark.parametrize("sigma", [0, -0.1, math.nan, math.inf])
def test_a_noise_that_is_no_width_is_refused(sigma: float) -> None:
    client = tiny()
    with pytest.raises(BadInput, match="sigma must be a positive number"):
        channels.Gaussian(client.update(*batch_of(client)), sigma)


def test_each_chain_may_believe_another_sigma() -> None:
    """A model that infers the noise has one sigma a chain, in density and in draws."""
    client = tiny("linear", zero=False)
    update = client.update(*batch_of(client, (2,)))
    sigmas = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    g = some_g(client.update_size)
    channel = channels.Gaussian(update, sigmas)
    expected = textbook(g, update.materialise(), sigmas[:, None])
    torch.testing.assert_close(channel.log_prob(g), expected, rtol=1e-10, atol=0)
    slopes = [torch.autograd.grad(f.sum(), sigmas, retain_graph=True)[0] for f in (channel.log_prob(g), expected)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=0)
    draws = channel.sample(torch.Size([4000]))
    assert_moments(chains_of(draws), update.materialise(), sigmas.detach()[:, None].expand(2, client.update_size))


def test_it_is_a_pyro_site_that_predictive_vectorises() -> None:
    client = tiny()

    def model() -> None:
        x = pyro.sample("x", pyro.distributions.Uniform(0.0, 1.0).expand([1, 1, 2, 2]).to_event(4))
        pyro.sample("g", channels.Gaussian(client.update(x, torch.zeros(1, dtype=torch.long)), SIGMA))

    for parallel in (False, True):
        drawn = Predictive(model, num_samples=5, parallel=parallel)()
        assert drawn["g"].shape == (5, client.update_size)
        assert len(torch.unique(drawn["g"][:, 0])) == 5
