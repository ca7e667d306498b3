"""Every channel p(g | u): its density is the textbook formula on the materialised update, lazy or not, one chain or
many; its draws follow that density, which integrates to one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pytest
import torch
from conftest import LIMIT, assert_frequencies, assert_moments, batch_of, chains_of, misfit, own, tiny
from pyro.infer import Predictive
from scipy import integrate, stats
from torch import Tensor, nn

from pplleak import channels
from pplleak.channels.directional import log_bessel_i
from pplleak.channels.pruned import random_mask
from pplleak.clients import Client
from pplleak.errors import BadInput
from pplleak.updates import DenseUpdate, LazyUpdate, Update

SIGMA, RATE, STEP, KAPPA, CLIP, CLIENTS, L1 = 0.3, 0.4, 0.25, 20.0, 0.7, 4, 0.5


def sigmas(size: int) -> Tensor:
    """A width for each entry, equal within the first third, as within a layer."""
    spread = torch.linspace(0.5, 2, size, dtype=torch.float64)
    return SIGMA * torch.where(torch.arange(size) < size // 3, spread[0], spread)


def others(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    mean, variance, *factor = 0.3 * torch.randn(4, size, dtype=torch.float64, generator=generator)
    return {"mean": mean, "variance": variance.square(), "factor": torch.stack(factor, -1)}


# -- the textbook: g (D,) and examples (batch, D) whose sum is u, in numpy and scipy ---------------------------------


def gaussian(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.norm(examples.sum(0), SIGMA).logpdf(g).sum()


def weighted(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.norm(examples.sum(0), sigmas(len(g)).numpy()).logpdf(g).sum()


def laplace(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.laplace(examples.sum(0), SIGMA / math.sqrt(2)).logpdf(g).sum()


def elastic(g: np.ndarray, examples: np.ndarray) -> float:
    def factor(e: np.ndarray | float) -> np.ndarray | float:
        return np.exp(-(np.square(e) + L1 * np.abs(e)) / (2 * SIGMA**2))

    normaliser = 2 * integrate.quad(factor, 0, np.inf)[0]
    return float(np.log(factor(g - examples.sum(0)) / normaliser).sum())


def directional(g: np.ndarray, examples: np.ndarray) -> float:
    u = examples.sum(0)
    return float(stats.vonmises_fisher(u / np.linalg.norm(u), KAPPA).logpdf(g / np.linalg.norm(g)))


def masked(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.norm(random_mask(len(g), RATE, 0).numpy() * examples.sum(0), SIGMA).logpdf(g).sum()


def masked_laplace(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.laplace(random_mask(len(g), RATE, 0).numpy() * examples.sum(0), SIGMA / math.sqrt(2)).logpdf(g).sum()


def pruned(g: np.ndarray, examples: np.ndarray) -> float:
    slab, spike = stats.norm(examples.sum(0), SIGMA).pdf(g), stats.norm(0, SIGMA).pdf(g)
    return np.log(RATE * spike + (1 - RATE) * slab).sum()


def pruned_laplace(g: np.ndarray, examples: np.ndarray) -> float:
    b = SIGMA / math.sqrt(2)
    slab, spike = stats.laplace(examples.sum(0), b).pdf(g), stats.laplace(0, b).pdf(g)
    return np.log(RATE * spike + (1 - RATE) * slab).sum()


def sparse(g: np.ndarray, examples: np.ndarray) -> float:
    kept = (1 - RATE) * stats.norm(examples.sum(0), SIGMA).pdf(g)
    return np.log(np.where(g == 0, RATE, kept)).sum()


def sparse_laplace(g: np.ndarray, examples: np.ndarray) -> float:
    kept = (1 - RATE) * stats.laplace(examples.sum(0), SIGMA / math.sqrt(2)).pdf(g)
    return np.log(np.where(g == 0, RATE, kept)).sum()


def topk(g: np.ndarray, examples: np.ndarray) -> float:
    noisy, t = stats.norm(examples.sum(0), SIGMA), np.abs(g[g != 0]).min()
    return np.log(np.where(g == 0, noisy.cdf(t) - noisy.cdf(-t), noisy.pdf(g))).sum()


def dpsgd(g: np.ndarray, examples: np.ndarray) -> float:
    batch = len(examples)
    own_gradients = batch * examples
    clipped = [v * min(1.0, CLIP / np.linalg.norm(v)) for v in own_gradients]
    return stats.norm(np.mean(clipped, 0), SIGMA * CLIP / batch).logpdf(g).sum()


def quantised(g: np.ndarray, examples: np.ndarray) -> float:
    noisy = stats.norm(examples.sum(0), SIGMA)
    return np.log(noisy.cdf(g + STEP / 2) - noisy.cdf(g - STEP / 2)).sum()


def sign(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.norm.logcdf(g * examples.sum(0) / SIGMA).sum()


def aggregated(g: np.ndarray, examples: np.ndarray) -> float:
    known = {n: v.numpy() for n, v in others(len(g)).items()}
    covariance = np.diag(known["variance"]) + known["factor"] @ known["factor"].T
    mean = (examples.sum(0) + (CLIENTS - 1) * known["mean"]) / CLIENTS
    total = (CLIENTS - 1) / CLIENTS**2 * covariance + SIGMA**2 * np.eye(len(g))
    return float(stats.multivariate_normal(mean, total).logpdf(g))


@dataclass(frozen=True)
class Case:
    """A channel, its textbook density, whether its density leaves a linear layer's update of one example lazy, and the
    same channel with other noise."""

    make: Callable[[Update], channels.Channel]
    textbook: Callable[[np.ndarray, np.ndarray], float]
    lazy: bool
    twin: Callable[[Update], channels.Channel]


def aggregating(update: Update, sigma: float = SIGMA, clients: int = CLIENTS) -> channels.Channel:
    return channels.Aggregated(update, sigma, clients=clients, **others(update.size))


def clipped(update: Update, factor: float = 1.0) -> channels.Channel:
    return channels.DPSGD(update, noise_multiplier=factor * SIGMA, clip=CLIP)


HALF = SIGMA / 2
CASES = {
    "gaussian": Case(lambda u: channels.Gaussian(u, SIGMA), gaussian, True, lambda u: channels.Gaussian(u, HALF)),
    "weighted": Case(
        lambda u: channels.Weighted(u, sigmas(u.size)), weighted, True,
        lambda u: channels.Weighted(u, sigmas(u.size) / 2),
    ),
    "laplace": Case(lambda u: channels.Laplace(u, SIGMA), laplace, False, lambda u: channels.Laplace(u, HALF)),
    "elastic": Case(
        lambda u: channels.Elastic(u, SIGMA, l1=L1), elastic, False, lambda u: channels.Elastic(u, HALF, l1=L1)
    ),
    "directional": Case(
        lambda u: channels.Directional(u, kappa=KAPPA), directional, True,
        lambda u: channels.Directional(u, kappa=2 * KAPPA),
    ),
    "masked": Case(
        lambda u: channels.Masked(u, SIGMA, rate=RATE), masked, True, lambda u: channels.Masked(u, HALF, rate=RATE)
    ),
    "masked, laplace": Case(
        lambda u: channels.Masked(u, SIGMA, rate=RATE, noise="laplace"), masked_laplace, False,
        lambda u: channels.Masked(u, HALF, rate=RATE, noise="laplace"),
    ),
    "pruned": Case(
        lambda u: channels.Pruned(u, SIGMA, rate=RATE), pruned, False,
        lambda u: channels.Pruned(u, SIGMA, rate=RATE / 2),
    ),
    "pruned, laplace": Case(
        lambda u: channels.Pruned(u, SIGMA, rate=RATE, noise="laplace"), pruned_laplace, False,
        lambda u: channels.Pruned(u, HALF, rate=RATE, noise="laplace"),
    ),
    "pruned, noise first": Case(
        lambda u: channels.Pruned(u, SIGMA, rate=RATE, order="noise_first"), sparse, True,
        lambda u: channels.Pruned(u, HALF, rate=RATE, order="noise_first"),
    ),
    "pruned, laplace first": Case(
        lambda u: channels.Pruned(u, SIGMA, rate=RATE, order="noise_first", noise="laplace"), sparse_laplace, False,
        lambda u: channels.Pruned(u, HALF, rate=RATE, order="noise_first", noise="laplace"),
    ),
    "topk": Case(
        lambda u: channels.TopK(u, SIGMA, rate=RATE), topk, False, lambda u: channels.TopK(u, HALF, rate=RATE)
    ),
    "dpsgd": Case(clipped, dpsgd, True, lambda u: clipped(u, 0.5)),
    "quantised": Case(
        lambda u: channels.Quantised(u, SIGMA, step=STEP), quantised, False,
        lambda u: channels.Quantised(u, HALF, step=STEP),
    ),
    "sign": Case(lambda u: channels.Sign(u, SIGMA), sign, False, lambda u: channels.Sign(u, HALF)),
    "aggregated": Case(aggregating, aggregated, True, lambda u: aggregating(u, clients=CLIENTS + 2)),
}  # fmt: skip
each_channel = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def convolutional() -> Client:
    """A layer with more rows than its weight has entries: its share is dense, whatever the batch."""
    return own(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)), (1, 4, 4))


NETWORKS: dict[str, Callable[[], Client]] = {"perceptron": tiny, "convolutional": convolutional}


def test_every_channel_is_tested_here() -> None:
    update = DenseUpdate(torch.ones(1, 3, dtype=torch.float64))
    tested = {type(case.make(update)) for case in CASES.values()}
    named = {c for c in vars(channels).values() if isinstance(c, type) and issubclass(c, channels.Channel)}
    assert tested == named - {channels.Channel}


# -- the density -----------------------------------------------------------------------------------------------------


@each_channel
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [1, 3])
def test_density_is_the_textbook_formula_on_the_materialised_update(case: Case, network: str, size: int) -> None:
    client = NETWORKS[network]()
    x, y = batch_of(client, (2, 3), size)
    g = case.make(client.update(*batch_of(client, (), size, seed=1))).sample()
    found = case.make(client.update(x, y)).log_prob(g)
    assert found.dtype == torch.float64 and found.shape == (2, 3)
    examples = client.materialised(x, y).examples.numpy()
    for at in np.ndindex(2, 3):
        assert found[at].item() == pytest.approx(case.textbook(g.numpy(), examples[at]), rel=1e-9)


@each_channel
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [1, 3])
def test_lazy_and_materialised_updates_have_the_same_density_and_slope(case: Case, network: str, size: int) -> None:
    client = NETWORKS[network]()
    x, y = batch_of(client, (2,), size)
    g = case.make(client.update(*batch_of(client, (), size, seed=1))).sample()
    x.requires_grad_()
    values, slopes = [], []
    for update in (client.update(x, y), client.materialised(x, y)):
        values.append(case.make(update).log_prob(g))
        slopes.append(torch.autograd.grad(values[-1].sum(), x)[0])
    assert isinstance(client.update(x, y), LazyUpdate)
    assert slopes[0].abs().max() > 0
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=0)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-8, atol=1e-10)


@each_channel
def test_lazy_densities_never_materialise_the_update(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tiny()
    channel = case.make(client.update(*batch_of(client, (3,))))
    g = channel.sample()[0]

    def refuse(self: object) -> Tensor:
        raise AssertionError("materialised")

    monkeypatch.setattr(LazyUpdate, "materialise", refuse)
    if case.lazy:
        assert channel.log_prob(g).isfinite().all()
    else:
        with pytest.raises(AssertionError, match="materialised"):
            channel.log_prob(g)


@each_channel
def test_many_chains_have_the_densities_of_separate_runs(case: Case) -> None:
    client = tiny()
    x, y = batch_of(client, (3,), 2)
    gs = case.make(client.update(x, y)).sample()
    assert gs.shape == (3, client.update_size) and gs.dtype == client.dtype
    one, own_each = case.make(client.update(x, y)).log_prob(gs[0]), case.make(client.update(x, y)).log_prob(gs)
    for k in range(3):
        alone = case.make(client.update(x[k], y[k]))
        assert alone.batch_shape == () and alone.log_prob(gs[0]).shape == ()
        torch.testing.assert_close(one[k], alone.log_prob(gs[0]), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(own_each[k], alone.log_prob(gs[k]), rtol=1e-10, atol=1e-12)
    assert len(torch.unique(one)) == 3


@each_channel
def test_expanding_repeats_the_density(case: Case) -> None:
    client = tiny()
    channel = case.make(client.update(*batch_of(client, (3,))))
    grown, g = channel.expand(torch.Size((2, 3))), channel.sample()[0]
    assert grown.batch_shape == (2, 3) and grown.event_shape == (client.update_size,)
    torch.testing.assert_close(grown.log_prob(g), channel.log_prob(g).expand(2, 3), rtol=1e-12, atol=0)


@each_channel
def test_a_client_in_single_precision_has_the_density_of_one_in_double(case: Case) -> None:
    single, double = tiny(dtype="float32"), tiny()
    x, y = batch_of(single, (3,))
    g = case.make(single.update(*batch_of(single, (), seed=1))).sample()
    assert g.dtype == torch.float32
    found = case.make(single.update(x, y)).log_prob(g)
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, case.make(double.update(x.double(), y)).log_prob(g.double()), rtol=1e-5, atol=1e-4
    )


@each_channel
def test_it_has_a_curvature(case: Case) -> None:
    """Second derivatives in x are finite: the Laplace approximation and the samplers' metric need them."""
    client = tiny()
    x, y = batch_of(client)
    g = case.make(client.update(x, y)).sample()
    curvature = torch.autograd.functional.hessian(lambda x: case.make(client.update(x, y)).log_prob(g), x)
    assert curvature.isfinite().all() and curvature.abs().max() > 0


@each_channel
@pytest.mark.parametrize("parallel", [False, True])
def test_it_is_a_pyro_site_that_predictive_vectorises(case: Case, parallel: bool) -> None:
    client = tiny()

    def model() -> None:
        x = pyro.sample("x", pyro.distributions.Uniform(0.0, 1.0).expand([1, 1, 2, 2]).to_event(4))
        pyro.sample("g", case.make(client.update(x, torch.zeros(1, dtype=torch.long))))

    drawn = Predictive(model, num_samples=5, parallel=parallel)()
    assert drawn["g"].shape == (5, client.update_size)
    assert len(torch.unique(drawn["g"], dim=0)) == 5


# -- the draws -------------------------------------------------------------------------------------------------------


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
    u, count = [0.4, -0.25, 0.1, 0.5, -0.05], torch.Size([40_000])
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


CONTINUOUS = ["gaussian", "weighted", "laplace", "elastic", "masked", "masked, laplace", "pruned", "pruned, laplace",
              "dpsgd", "aggregated"]  # fmt: skip


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
