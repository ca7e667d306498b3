"""Every channel's draws follow its density, which integrates to one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from channel_cases import CASES, KAPPA, SIGMA, STEP, Case, each_channel
from conftest import LIMIT, assert_frequencies, assert_moments, batch_of, chains_of, misfit, tiny
from scipy import integrate, stats
from torch import Tensor

from pplleak import channels
from pplleak.channels import svt
from pplleak.channels.directional import log_bessel_i
from pplleak.client.update import DenseUpdate, Update
from pplleak.errors import BadInput


def plain(u: list[float], lead: tuple[int, ...] = ()) -> DenseUpdate:
    """An update of one example that is u itself."""
    return DenseUpdate(torch.tensor(u, dtype=torch.float64).expand(*lead, 1, len(u)))


def ratios(case: Case, u: Update, v: Update, draws: Tensor) -> np.ndarray:
    """p(g | v) / p(g | u), whose mean over g ~ p(g | u) is one."""
    one, other = (case.make(w.expand(torch.Size([len(draws)]))).log_prob(draws) for w in (v, u))
    return chains_of((one - other).exp())


@each_channel
def test_its_draws_follow_its_density(case: Case) -> None:
    """E[p(g | v) / p(g | u)] = 1 under g ~ p(g | u), for any v; not so for draws of another u, or with other noise."""
    u, count = [0.4, -0.25, 0.1, 0.5, -0.05], torch.Size([case.draws])
    here, near = plain(u), [plain([a + d for a in u]) for d in (0.15, -0.1)]
    if "directional" in case.textbook.__name__:
        near = [plain([0.4, -0.1, 0.2, 0.4, -0.05]), plain([0.5, -0.3, 0.0, 0.4, 0.1])]
    draws = case.make(here).sample(count)
    assert draws.shape == (*count, len(u))
    assert max(misfit(ratios(case, here, v, draws), 1.0) for v in near) <= LIMIT
    shifted = case.make(near[0]).sample(count)
    other_noise = case.twin(here).sample(count)
    for wrong in (shifted, other_noise):
        assert max(misfit(ratios(case, here, v, wrong), 1.0, floor=20) for v in near) > LIMIT


@pytest.mark.parametrize("replace", [True, False])
def test_thresholds_of_a_sparse_vector_filter_are_looked_at_together_as_one_by_one(
    replace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tiny()
    x, y = batch_of(client, (3,))
    settings: dict[str, Any] = {"share": 0.1, "epsilon": 2.0, "noise_var": 4.0, "gamma": 0.6, "tau": 0.2}
    g = channels.SVT(client.update(*batch_of(client, seed=1)), replace=replace, **settings).sample()
    found = []
    for together in (svt.TOGETHER, 1):
        monkeypatch.setattr(svt, "TOGETHER", together)
        seen = x.clone().requires_grad_()
        value = channels.SVT(client.update(seen, y), replace=replace, **settings).log_prob(g)
        found.append((value.detach(), torch.autograd.grad(value.sum(), seen)[0]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


CONTINUOUS = ["gaussian", "weighted", "rounded", "laplace", "elastic", "masked", "masked, laplace", "pruned",
              "pruned, laplace", "dpsgd", "aggregated"]  # fmt: skip


def kolmogorov(case: Case, u: float, draws: Tensor) -> tuple[float, float]:
    """The density's integral, and the p-value of draws (N, 1) under its cdf, by the trapezoid rule."""
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    density = case.make(plain([u], (len(grid),))).log_prob(grid[:, None]).exp().numpy()
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid.numpy()))])
    return float(cdf[-1]), float(stats.kstest(draws.flatten(), lambda g: np.interp(g, grid.numpy(), cdf)).pvalue)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_its_density_integrates_to_one_and_is_the_draws_own_cdf(name: str) -> None:
    case, u = CASES[name], 0.6
    total, fits = kolmogorov(case, u, case.make(plain([u])).sample(torch.Size([4000])))
    assert total == pytest.approx(1, abs=1e-6)
    assert fits > 1e-3
    assert kolmogorov(case, u, case.twin(plain([u])).sample(torch.Size([4000])))[1] < 1e-6


def test_levels_and_signs_have_the_probabilities_that_their_densities_say() -> None:
    for name, levels in (("quantised", STEP * np.arange(-12, 17)), ("sign", np.array([-1.0, 1.0]))):
        case, u = CASES[name], 0.15
        probabilities = case.make(plain([u], (len(levels),))).log_prob(torch.tensor(levels)[:, None]).exp()
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-9)
        draws = case.make(plain([u])).sample(torch.Size([4000])).flatten().numpy()
        drawn = np.abs(draws[:, None] - levels).argmin(1).reshape(4, -1)
        likely = probabilities.numpy() > 0.01
        if name == "sign":
            assert_frequencies(drawn, probabilities)
        else:
            rest = np.where(likely, np.cumsum(likely) - 1, likely.sum())
            assert_frequencies(rest[drawn], [*probabilities.numpy()[likely], 1 - probabilities.numpy()[likely].sum()])


def test_zeros_of_noise_first_pruning_are_as_frequent_as_the_point_mass() -> None:
    case = CASES["pruned, noise first"]
    grid = torch.linspace(-8, 8, 40_000, dtype=torch.float64)  # of even length: 0 is not on it
    density = case.make(plain([0.6], (len(grid),))).log_prob(grid[:, None]).exp()
    zero = case.make(plain([0.6])).log_prob(torch.zeros(1, dtype=torch.float64)).exp().item()
    assert zero + torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-6)
    draws = case.make(plain([0.6])).sample(torch.Size([4000])).flatten().numpy()
    assert_frequencies((draws == 0).astype(int).reshape(4, -1), [1 - zero, zero])


def test_top_k_integrates_to_one_over_all_supports_and_sends_them_as_often() -> None:
    """Two of three entries: the density over a plane for each pair that may be sent."""
    u, grid = [0.3, -0.2, 0.15], torch.linspace(-1.8, 1.8, 400, dtype=torch.float64)  # 0 is not on it
    plane = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    cell = (grid[1] - grid[0]) ** 2
    probabilities = []
    for unsent in range(3):
        g = torch.zeros(len(plane), 3, dtype=torch.float64)
        g[:, [i for i in range(3) if i != unsent]] = plane
        density = channels.TopK(plain(u, (len(plane),)), SIGMA, rate=1 / 3).log_prob(g).exp()
        probabilities.append(float(density.sum() * cell))
    assert sum(probabilities) == pytest.approx(1, abs=2e-3)  # of a density with a kink, on this grid
    draws = channels.TopK(plain(u), SIGMA, rate=1 / 3).sample(torch.Size([8000]))
    assert ((draws != 0).sum(-1) == 2).all()
    assert_frequencies((draws == 0).int().argmax(-1).numpy().reshape(4, -1), probabilities)


def test_directions_integrate_to_one_over_the_circle_and_follow_it() -> None:
    angles = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], -1)
    density = channels.Directional(plain([0.4, 0.0], (len(angles),)), kappa=KAPPA).log_prob(circle).exp()
    cdf = np.concatenate([[0], np.cumsum(((density[1:] + density[:-1]) / 2 * angles.diff()).numpy())])
    assert cdf[-1] == pytest.approx(1, abs=1e-7)

    def fit(kappa: float) -> float:
        draws = channels.Directional(plain([0.4, 0.0]), kappa=kappa).sample(torch.Size([4000]))
        torch.testing.assert_close(draws.norm(dim=-1), torch.ones(4000, dtype=torch.float64), rtol=1e-12, atol=0)
        found = torch.atan2(draws[:, 1], draws[:, 0]).numpy()
        return float(stats.kstest(found, lambda a: np.interp(a, angles.numpy(), cdf)).pvalue)

    assert fit(KAPPA) > 1e-3
    assert fit(2 * KAPPA) < 1e-6


@pytest.mark.parametrize("dim", [2, 3, 5000, 20_000])
def test_directions_agree_as_closely_as_the_concentration_says(dim: int) -> None:
    """The mean cosine is I_{D/2}(κ) / I_{D/2−1}(κ)."""
    u = torch.randn(1, dim, dtype=torch.float64)
    kappa = 1.5 * dim
    draws = channels.Directional(DenseUpdate(u), kappa=kappa).sample(torch.Size([400 if dim > 5 else 4000]))
    cosines = (draws @ u[0]) / u.norm()
    expected = math.exp(log_bessel_i(dim / 2, kappa) - log_bessel_i(dim / 2 - 1, kappa))
    assert misfit(chains_of(cosines), expected) <= LIMIT
    assert misfit(chains_of(cosines), expected - 0.05) > LIMIT


# -- Gaussian noise --------------------------------------------------------------------------------------------------


def test_gaussian_draws_are_the_update_plus_noise_of_width_sigma() -> None:
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
    g = torch.randn(client.update_size, dtype=torch.float64)
    channel = channels.Gaussian(update, sigmas)
    expected = torch.distributions.Normal(update.materialise(), sigmas[:, None]).log_prob(g).sum(-1)
    torch.testing.assert_close(channel.log_prob(g), expected, rtol=1e-10, atol=0)
    slopes = [torch.autograd.grad(f.sum(), sigmas, retain_graph=True)[0] for f in (channel.log_prob(g), expected)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=0)
    draws = channel.sample(torch.Size([4000]))
    assert_moments(chains_of(draws), update.materialise(), sigmas.detach()[:, None].expand(2, client.update_size))


def test_a_filter_whose_entries_are_all_cut_off_says_how_large_the_others_may_be() -> None:
    """The smallest entry that was sent is not seen; the closed form that takes it to be on the bound is rejected."""
    u, bound = [0.9, -1.1, 0.2, 0.7, 0.1], CASES["percentile"].make(plain([0.0])).settings["bound"]
    case = CASES["percentile"]
    g = torch.tensor([bound, -bound, 0.0, bound, 0.0], dtype=torch.float64)
    found = float(case.make(plain(u)).log_prob(g))
    assert found == pytest.approx(case.textbook(g.numpy(), np.array([u])), abs=1e-6)
    tails = [stats.norm.logcdf((abs(v) - bound) / SIGMA) for v in (u[0], u[1], u[3])]
    rest = [np.log(stats.norm.cdf(bound, v, SIGMA) - stats.norm.cdf(-bound, v, SIGMA)) for v in (u[2], u[4])]
    assert found > sum(tails) + sum(rest) + 1e-3
    draws = case.make(plain(u)).sample(torch.Size([10_000]))
    share = float((draws == g).all(-1).double().mean())  # a point mass: as often as its density says
    assert abs(share - np.exp(found)) < 4 * np.sqrt(np.exp(found) / 40_000)
    assert abs(share - np.exp(sum(tails) + sum(rest))) > 4 * np.sqrt(np.exp(found) / 40_000)


@pytest.mark.parametrize("quieter", [1.0, 0.3, 0.1, 1e-6])
def test_what_is_cut_off_far_beyond_the_bound_is_weighed_and_has_a_slope(quieter: float) -> None:
    """Beside quadrature of another kind; with next to no noise, the least that was sent is where its u is."""
    sigma, bound = quieter * SIGMA, 0.05
    u = torch.tensor([0.9, -1.1, 0.2, 0.55, 0.5], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([bound, -bound, 0.0, bound, 0.0], dtype=torch.float64)
    found = channels.Percentile(DenseUpdate(u[None]), sigma, rate=0.4, bound=bound).log_prob(g)
    (slope,) = torch.autograd.grad(found, u)
    assert slope.isfinite().all() and float(slope[3]) > -1e-3 and float(slope[4]) < 1e-3
    x = np.linspace(max(bound, 0.55 - 10 * sigma), 0.55 + 8 * sigma, 20_001)
    sent = np.stack([stats.norm.sf(x, v, sigma) for v in (0.9, 1.1, 0.55)])
    falls = sum(stats.norm.pdf(x, v, sigma) * np.delete(sent, k, 0).prod(0) for k, v in enumerate((0.9, 1.1, 0.55)))
    rest = np.prod([stats.norm.cdf(x, v, sigma) - stats.norm.cdf(-x, v, sigma) for v in (0.2, 0.5)], 0)
    assert float(found.detach()) == pytest.approx(np.log(integrate.trapezoid(falls * rest, x)), abs=1e-3)


@pytest.mark.parametrize("replace", [True, False])
def test_a_sparse_vector_filter_sends_every_set_of_entries_as_often_as_its_density_says(replace: bool) -> None:
    """All sets of four entries, whatever threshold, passes and draws led to them; not so for another update."""
    update = plain([0.5, -0.3, 0.1, -0.05])
    channel = channels.SVT(update, share=0.5, epsilon=12.0, noise_var=2.0, gamma=0.6, tau=0.3, replace=replace)

    def probabilities(u: DenseUpdate) -> np.ndarray:
        sets = (torch.arange(1, 16)[:, None] >> torch.arange(4)) & 1
        sets = sets[(sets.sum(-1) == 2) | ((sets.sum(-1) == 1) & replace)]
        c = u.materialise()  # sent without noise, where the Laplace densities of what is sent are at their peak
        law = channels.SVT(u.expand(torch.Size([len(sets)])), **channel.settings)
        return (law.log_prob(sets * c) + sets.sum(-1) * math.log(2 * law.scale)).exp().numpy()

    expected = probabilities(update)
    assert expected.sum() == pytest.approx(1, abs=1e-4)
    sent = (channel.sample(torch.Size([20_000])) != 0).long() @ 2 ** torch.arange(4)
    _, found = sent.unique(return_inverse=True)
    assert_frequencies(found.reshape(4, -1).numpy(), expected)
    with pytest.raises(AssertionError):
        assert_frequencies(found.reshape(4, -1).numpy(), probabilities(plain([0.1, -0.3, 0.5, -0.05])))
