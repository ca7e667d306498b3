"""Moves on ellipses leave the posterior as it is, jumps or not; and a trial tells wide moves from narrow ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import LIMIT, assert_frequencies, assert_moments, chains_of, misfit
from scenes import from_data
from torch import Tensor

from pplleak.density import build, ellipses
from pplleak.models import dlg, optimal

CHAINS = 8000
NOISE = 0.5


def heard(z: Tensor) -> Tensor:
    """ℓ of the sum of two latents, heard as 1.2 behind noise: the posterior is Normal."""
    return -0.5 * ((z.sum(1) - 1.2) / NOISE).double().square()


def exactly(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of that posterior, its mean and sds."""
    covariance = torch.linalg.inv(torch.eye(2).double() + torch.ones(2, 2).double() / NOISE**2)
    mean = covariance @ torch.full((2,), 1.2 / NOISE**2, dtype=torch.float64)
    z = torch.distributions.MultivariateNormal(mean, covariance).sample(torch.Size([count]))
    return z, mean, covariance.diagonal().sqrt()


@pytest.mark.parametrize("moves", [1, 7])
def test_moves_keep_a_posterior_that_they_begin_in(moves: int) -> None:
    torch.manual_seed(0)
    z, mean, sd = exactly(CHAINS)
    new, height, looks = ellipses.move(heard, z, heard(z), moves)
    assert_moments(chains_of(new), mean, sd)
    assert torch.equal(height, heard(new)) and bool((looks >= moves).all())
    assert float((new - z).abs().mean()) > 0.2, "they have come somewhere"


def test_moves_come_to_the_posterior_from_the_prior_and_do_not_when_they_only_climb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    _, mean, sd = exactly(1)
    z = torch.randn(CHAINS, 2, dtype=torch.float64)
    assert_moments(chains_of(ellipses.move(heard, z, heard(z), 30)[0]), mean, sd)
    # the wrong twin: a floor at the height itself, under which no chain ever goes
    monkeypatch.setattr(torch.Tensor, "exponential_", torch.Tensor.zero_)
    assert misfit(chains_of(ellipses.move(heard, z, heard(z), 30)[0]), mean, sd) > LIMIT


def step(z: Tensor) -> Tensor:
    """ℓ with a jump: a half space that is three times as likely as the other."""
    return math.log(3) * (z[:, 0] > 0).double()


def sides(z: Tensor) -> np.ndarray:
    """On which side of the jump each chain is, (4, chains / 4)."""
    return (z[:, 0] > 0).long().reshape(4, -1).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_jump_is_crossed_as_often_as_it_should_be(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z = torch.randn(CHAINS, 3, dtype=dtype)
    new, _, _ = ellipses.move(step, z, step(z), 20)
    assert_frequencies(sides(new), [0.25, 0.75])


def test_the_state_at_a_set_number_of_looks_is_not_a_draw() -> None:
    """The wrong twin of chains that make as many moves each: states that take long to leave are met too often."""
    torch.manual_seed(0)
    z, spent = torch.randn(CHAINS, 3, dtype=torch.float64), torch.zeros(CHAINS, dtype=torch.float64)
    for _ in range(20):
        new, _, looks = ellipses.move(step, z, step(z), 1)
        spent += looks
        z = torch.where((spent <= 20)[:, None], new, z)
    assert misfit(sides(z)[..., None].astype(float), [0.75]) > LIMIT


def test_chains_leave_what_is_no_number_and_what_is_impossible() -> None:
    torch.manual_seed(0)
    observed = from_data(settings={"activation": "relu"}, sigma=2.0)
    density = build(functools.partial(optimal.model, sigma=2.0, reference=observed.public), observed.client, observed)
    of, z = ellipses.log_factor(density), density.sample_prior(2)
    broken = torch.cat([z * torch.nan, z])
    assert of(broken)[:2].tolist() == [-math.inf] * 2 and bool(of(broken)[2:].isfinite().all())
    _, height, _ = ellipses.move(of, z, torch.full((2,), -math.inf, dtype=torch.float64), 1)
    assert bool(height.isfinite().all())


def test_a_chain_that_rounding_keeps_from_its_own_height_stays_where_it_is() -> None:
    z = torch.randn(5, 2, dtype=torch.float64)
    high = torch.full((5,), 1e9, dtype=torch.float64)
    new, height, looks = ellipses.move(heard, z, high, 2)
    assert torch.equal(new, z) and torch.equal(height, high)
    assert bool((looks == 2 * (ellipses.NARROWEST + 1)).all())


@pytest.mark.parametrize(
    ("sigma", "holds"), [(2.0, lambda n: n <= 2), (0.003, lambda n: n > 6)], ids=["wide", "narrow"]
)
def test_a_trial_tells_how_wide_the_moves_are_and_draws_nothing(sigma: float, holds: Callable[[float], bool]) -> None:
    observed = from_data(settings={"activation": "relu"}, sigma=sigma)
    model = functools.partial(optimal.model, sigma=sigma, reference=observed.public)
    before = torch.get_rng_state()
    looks = ellipses.looks_a_move(model, observed, observed.client)
    assert torch.equal(torch.get_rng_state(), before)
    assert holds(looks)


def test_up_to_a_number_of_looks_another_sampler_leaves_it_to_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = from_data(settings={"activation": "relu"}, sigma=2.0)
    model = functools.partial(optimal.model, sigma=2.0, reference=observed.public)
    for looks, said in ((4.4, ""), (4.6, "4.6 points"), (math.inf, "inf points")):
        monkeypatch.setattr(ellipses, "looks_a_move", lambda *_, looks=looks: looks)
        assert said in (why := ellipses.narrow(model, observed, observed.client)) and bool(said) is bool(why)
    assert "not a standard normal" in ellipses.narrow(dlg.model, observed, observed.client)
