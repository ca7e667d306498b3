"""Bounds against closed forms, brute force, and adversaries that try to cross them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from channel_cases import coder
from conftest import LIMIT, batch_of, observe, tiny
from scipy import integrate, stats
from torch import Tensor

from pplleak import channels, density
from pplleak.channels import Channel
from pplleak.client.update import DenseUpdate, Update
from pplleak.errors import BadInput
from pplleak.models import dlg, linear_gaussian, optimal
from pplleak.studies.risk import bounds, rero

SIGMA = 0.3


# -- Fisher information ----------------------------------------------------------------------------------------------


def slopes(size: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """J = ∂u/∂x entry by entry, and the x and y it was taken at."""
    client = tiny()
    x, y = batch_of(client, size=size)
    found = torch.autograd.functional.jacobian(lambda x: client.materialised(x, y).materialise(), x)
    return found.reshape(client.update_size, -1), x, y


@pytest.mark.parametrize("size", [1, 2])
def test_the_lazy_fisher_information_is_that_of_the_dense_jacobian(size: int) -> None:
    j, x, y = slopes(size)
    found = bounds.fisher_of(tiny(), lambda u: channels.Gaussian(u, SIGMA), x, y)
    torch.testing.assert_close(found, j.mT @ j / SIGMA**2, rtol=1e-9, atol=1e-9)
    sigmas = torch.linspace(0.1, 1, len(j), dtype=torch.float64)
    found = bounds.fisher_of(tiny(), lambda u: channels.Weighted(u, sigmas), x, y)
    torch.testing.assert_close(found, j.mT @ (j / sigmas[:, None] ** 2), rtol=1e-9, atol=1e-9)


def test_of_measurements_and_behind_a_clipped_user_it_is_that_of_what_is_sent() -> None:
    j, x, y = slopes()
    client = tiny()
    u = client.materialised(x, y).materialise()
    measured = channels.Projected(DenseUpdate(j.mT[:, None]), SIGMA, rate=0.6).measured().materialise().mT  # A J
    found = bounds.fisher_of(client, lambda u: channels.Projected(u, SIGMA, rate=0.6), x, y)
    torch.testing.assert_close(found, measured.mT @ measured / SIGMA**2, rtol=1e-8, atol=1e-8)
    assert 0.2 < float(found.trace() * SIGMA**2 / (j.mT @ j).trace()) < 0.8  # of four dimensions in ten
    clip = 0.5 * float(u.norm())
    one, many = (bounds.fisher_of(client, c, x, y) for c in (
        lambda u: channels.DPFedAvg(u, noise_multiplier=0.2, clip=clip),
        lambda u: channels.DPSGD(u, noise_multiplier=0.2, clip=clip)))  # fmt: skip
    torch.testing.assert_close(one, many)  # of a user with one example


def test_behind_an_autoencoder_it_is_that_of_the_code() -> None:
    client = tiny()
    x, y = batch_of(client)
    known = coder(client.update_size)
    slope = torch.autograd.functional.jacobian(lambda x: known.encode(client.materialised(x, y).materialise()), x)
    j = slope.reshape(known.code, -1)
    found = bounds.fisher_of(client, lambda u: channels.Autoencoded(u, SIGMA, coder=known), x, y)
    torch.testing.assert_close(found, j.mT @ j / SIGMA**2, rtol=1e-8, atol=1e-8)
    straight = known.basis[:, : known.code].mT @ slopes()[0]  # a linear encoder's
    assert not torch.allclose(found, straight.mT @ straight / SIGMA**2, rtol=1e-2)


def test_behind_dpsgd_it_is_that_of_the_clipped_update() -> None:
    j, x, y = slopes()
    client = tiny()
    u = client.materialised(x, y).materialise()
    clip = 0.5 * float(u.norm())
    found = bounds.fisher_of(client, lambda u: channels.DPSGD(u, noise_multiplier=0.2, clip=clip), x, y)
    unit = u / u.norm()
    clipped = clip / u.norm() * (j - unit[:, None] * (unit @ j))
    torch.testing.assert_close(found, clipped.mT @ clipped / (0.2 * clip) ** 2, rtol=1e-8, atol=1e-8)


ONE = DenseUpdate(torch.zeros(1, 1, dtype=torch.float64))
NOISES: dict[str, Callable[[Update], Channel]] = {
    "gaussian": lambda u: channels.Gaussian(u, SIGMA),
    "laplace": lambda u: channels.Laplace(u, SIGMA),
    "elastic": lambda u: channels.Elastic(u, SIGMA, l1=0.4),
    "masked": lambda u: channels.Masked(u, SIGMA, rate=0.0, noise="laplace"),
}


def score_square(channel: Callable[[Update], Channel], u: float) -> float:
    """∫ (∂ log p(g | u) / ∂u)² p(g | u) dg of one entry, by quadrature."""

    def log_p(g: float, at: float) -> float:
        update = DenseUpdate(torch.full((1, 1), at, dtype=torch.float64))
        return float(channel(update).log_prob(torch.tensor([g], dtype=torch.float64)))

    def integrand(g: float) -> float:
        return ((log_p(g, u + 1e-5) - log_p(g, u - 1e-5)) / 2e-5) ** 2 * math.exp(log_p(g, u))

    parts = [integrate.quad(integrand, a, b, limit=40, epsabs=1e-6, epsrel=1e-4)[0]
             for a, b in ((-4, 0), (0, u), (u, u + 4))]  # fmt: skip
    return sum(parts)


@pytest.mark.parametrize("name", NOISES)
def test_an_entrys_information_is_that_of_its_density(name: str) -> None:
    _, weight = bounds.entry_information(NOISES[name](ONE))
    assert float(weight) == pytest.approx(score_square(NOISES[name], 0.1), rel=2e-3)


def test_pruning_at_random_leaves_less_than_what_its_bound_says() -> None:
    def pruned(u: Update) -> Channel:
        return channels.Pruned(u, SIGMA, rate=0.4)

    _, weight = bounds.entry_information(pruned(ONE))
    assert score_square(pruned, 0.3) < float(weight) == pytest.approx(0.6 / SIGMA**2)


def test_a_channel_without_independent_noise_and_a_network_with_kinks_are_refused() -> None:
    with pytest.raises(BadInput, match="directional"):
        bounds.entry_information(channels.Directional(ONE))
    client = tiny(activation="relu")
    with pytest.raises(BadInput, match=r"kinks \(relu\)"):
        bounds.fisher_of(client, lambda u: channels.Gaussian(u, SIGMA), *batch_of(client))
    with pytest.raises(BadInput, match=r"kinks \(relu\)"):
        bounds.van_trees(density.build(dlg.model, client, observe(client, SIGMA)))


# -- squared error ---------------------------------------------------------------------------------------------------


def linear_gaussian_density() -> density.Density:
    client = tiny("linear")
    return density.build(functools.partial(linear_gaussian.model, sigma=SIGMA), client, observe(client, SIGMA))


def test_van_trees_is_the_error_of_the_posterior_mean_in_the_linear_gaussian_model() -> None:
    built = linear_gaussian_density()
    limit = bounds.van_trees(built, 3)
    exact = linear_gaussian.exact_posterior(built.client, built.observed, sigma=SIGMA)
    assert limit.square == pytest.approx(float(exact.covariance.trace()), rel=1e-9)
    assert limit.se < 1e-9 and limit.rms == pytest.approx(math.sqrt(limit.square / 4))
    wrong = linear_gaussian.exact_posterior(built.client, built.observed, sigma=1.1 * SIGMA)
    assert limit.square != pytest.approx(float(wrong.covariance.trace()), rel=1e-2)


def uniform_errors(sigma: float) -> tuple[float, float, bounds.VanTrees]:
    """The Bayes error under dlg's uniform prior, where u is affine: every pixel alone, by quadrature on a grid."""
    client = tiny("linear", shape=(1, 1, 1), classes=2)
    built = density.build(functools.partial(dlg.model, sigma=sigma), client, observe(client, sigma))
    generator = np.random.default_rng(0)
    x, grid = generator.random(5_000), np.linspace(0, 1, 200)
    signal = math.sqrt(0.5)  # u = ±x/2 in two entries
    g = signal * x + sigma * generator.standard_normal(len(x))
    w = np.exp(-0.5 * ((g[:, None] - signal * grid) / sigma) ** 2)
    errors = ((w @ grid) / w.sum(1) - x) ** 2
    return float(errors.mean()), float(errors.std() / math.sqrt(len(x))), bounds.van_trees(built, 30)


@pytest.mark.slow
def test_van_trees_lies_below_the_bayes_error_of_a_bounded_prior_too() -> None:
    for sigma in (0.05, 0.3, 3.0):
        error, se, limit = uniform_errors(sigma)
        assert 0.2 * error < limit.square < error + LIMIT * math.hypot(se, limit.se)
        twin = error * 0.2  # an adversary that claims this has crossed it
        assert twin < limit.square - LIMIT * math.hypot(se, limit.se)


def test_a_prior_known_up_to_a_factor_is_refused() -> None:
    client = tiny()
    with pytest.raises(BadInput, match=r"pyro\.factor"):
        bounds.van_trees(density.build(functools.partial(optimal.model, prior="tv"), client, observe(client, SIGMA)))


def affine(information: Tensor, x: Tensor, shrink: float, count: int = 4000) -> float:
    """The mean squared error of x̂ = shrink · (efficient unbiased estimate), by simulation."""
    torch.manual_seed(0)
    noise = torch.randn(count, len(x), dtype=torch.float64) @ torch.linalg.cholesky(torch.linalg.inv(information)).mT
    return float((shrink * (x + noise) - x).square().sum(1).mean())


def test_fisher_information_leakage_bounds_unbiased_and_biased_estimators() -> None:
    torch.manual_seed(1)
    a = torch.randn(4, 4, dtype=torch.float64)
    information, x = a @ a.mT + torch.eye(4), torch.full((4,), 0.5, dtype=torch.float64)
    assert bounds.leakage(9 * torch.eye(5)) == pytest.approx(3) and bounds.unbiased(9 * torch.eye(5)) == pytest.approx(
        5 / 9
    )
    assert bounds.unbiased(information) < affine(information, x, 1.0)
    for shrink in (1.0, 0.5, 0.0):
        limit = bounds.biased(information, (shrink - 1) * x, shrink * torch.eye(4))
        assert limit <= affine(information, x, shrink) + 1e-9
    assert affine(4 * torch.eye(4).double(), x, 0.2) < bounds.unbiased(4 * torch.eye(4)), "a biased one may lie below"
    iso = bounds.biased(4 * torch.eye(4), (0.5 - 1) * x, 0.5 * torch.eye(4))
    assert iso == pytest.approx(affine(4 * torch.eye(4).double(), x, 0.5), rel=0.05), (
        "tight where all directions are alike"
    )


def test_the_renyi_bound_lies_below_the_sample_means_error_and_its_epsilon_is_the_gaussians() -> None:
    z = 2.0
    epsilon = bounds.gaussian_renyi(z, 2.0, sensitivity=1.0)
    ratio = integrate.quad(lambda g: stats.norm.pdf(g, 1, z) ** 2 / stats.norm.pdf(g, 0, z), -60, 60)[0]
    assert epsilon == pytest.approx(math.log(ratio), rel=1e-6)
    # x in [0, 1] itself, released with noise z: g is unbiased, and moves by at most 1
    assert bounds.renyi(epsilon, torch.ones(1)) == pytest.approx(0.25 / math.expm1(epsilon))
    assert bounds.renyi(epsilon, torch.ones(1)) < z**2
    with pytest.raises(BadInput, match="noise_multiplier"):
        bounds.gaussian_renyi(0.0)


# -- ReRo ------------------------------------------------------------------------------------------------------------


def best_guess(points: int, z: float, count: int = 40_000) -> float:
    """How often the Bayes-optimal adversary names the right one of equally likely unit vectors behind noise z."""
    generator = np.random.default_rng(0)
    g = z * generator.standard_normal((count, points))
    g[:, 0] += 1
    return float((g.argmax(1) == 0).mean())


@pytest.mark.parametrize("z", [0.3, 1.0, 3.0])
def test_no_guess_among_orthogonal_secrets_crosses_it_and_the_wrong_sensitivity_would_be_seen(z: float) -> None:
    realised = best_guess(10, z)
    assert realised < rero.gaussian(0.1, z) + 0.01
    assert rero.gaussian(0.1, 4 * z) < realised, "a bound with a quarter of the sensitivity passes"


def test_two_opposite_secrets_reach_it() -> None:
    # with x = ±1 the reference between them is the best: success Φ(1/z), and κ = ½
    z = 1.3
    generator = np.random.default_rng(0)
    realised = (1 + z * generator.standard_normal(200_000) > 0).mean()
    assert abs(realised - rero.gaussian(0.5, z)) < LIMIT * math.sqrt(0.25 / 200_000)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (1.0, 9), (0.3, 1)])
def test_closed_forms_of_the_subsampled_bound(rate: float, steps: int) -> None:
    exact = stats.norm.cdf(stats.norm.ppf(0.05) + math.sqrt(steps) / 2.0)
    expected = exact if rate == 1 else (1 - rate) * 0.05 + rate * exact
    assert rero.subsampled(0.05, 2.0, rate=rate, steps=steps) == pytest.approx(expected, rel=1e-12)


def test_its_monte_carlo_limit_lies_just_above_quadrature() -> None:
    kappa, z, q = 0.05, 1.0, 0.5
    # two steps on a grid: the exact Neyman-Pearson set
    grid = np.linspace(-8, 9, 1500)
    nu = stats.norm.pdf(grid, 0, z)
    mu = (1 - q) * nu + q * stats.norm.pdf(grid, 1, z)
    nu2, mu2 = (np.outer(p, p).ravel() * (grid[1] - grid[0]) ** 2 for p in (nu, mu))
    order = np.argsort(-mu2 / nu2)
    exact = float(np.interp(kappa, np.cumsum(nu2[order]), np.cumsum(mu2[order])))
    limits = [rero.subsampled(kappa, z, rate=q, steps=2, draws=20_000, seed=s) for s in range(20)]
    assert np.mean(np.array(limits) >= exact) >= 0.85, "an upper limit of 95 % confidence"
    assert np.mean(limits) == pytest.approx(exact, rel=0.08)
    assert rero.subsampled(kappa, z, rate=1 - 1e-9, steps=2, draws=50_000) == pytest.approx(
        rero.gaussian(kappa, z, steps=2), rel=0.05
    )


def test_kappa_is_the_mass_of_the_ball_around_the_mean_of_a_gaussian() -> None:
    draws = np.random.default_rng(0).standard_normal((8000, 1, 2, 2)) + 3
    found = rero.prior_mass(draws, 1.2)
    exact = float(stats.chi2.cdf(1.44, 4))
    assert abs(found.value - exact) < LIMIT * math.sqrt(exact / 2000) and found.value < found.upper
    assert exact < found.upper < exact + 0.05
    assert rero.prior_mass(draws, 1e-3).value == 0 < rero.prior_mass(draws, 1e-3).upper < 0.002


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(BadInput, match="kappa"):
        rero.gaussian(1.2, 1.0)
    with pytest.raises(BadInput, match="rate"):
        rero.subsampled(0.1, 1.0, rate=0.0, steps=2)
