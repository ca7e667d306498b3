"""Every inference against a posterior that is known exactly; tolerances come from the Monte Carlo error alone.

An inference with restrictions of its own (`refractive`: ReLU perceptrons) has its own test_NAME.py beside this file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    LIMIT,
    assert_frequencies,
    assert_moments,
    batch_of,
    chains_of,
    misfit,
    observe,
    tiny,
)
from torch import Tensor

from pplleak import priors, programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.models import logistic, optimal
from pplleak.posterior import Posterior
from pplleak.progress import ProgressBar, silent
from pplleak.settings import Named

# What each inference is, and the settings at which it takes a second or two. A new file needs its line here.
KINDS = {
    "hmc": "sampler",
    "nuts": "sampler",
    "langevin": "sampler",
    "elliptical": "sampler",
    "laplace": "approximation",
    "svi": "approximation",
    "map": "point",
}
ELSEWHERE = {p.stem.removeprefix("test_") for p in Path(__file__).parent.glob("test_*.py")} | {
    "seer"
}  # with its weights
TINY: dict[str, dict[str, Any]] = {
    "hmc": {"chains": 16, "draws": 100, "warmup": 60, "starts": 4, "steps": 60},
    "nuts": {"chains": 2, "draws": 220, "warmup": 50, "starts": 2, "steps": 60},
    "langevin": {"chains": 16, "draws": 100, "warmup": 100, "thin": 4, "starts": 4, "steps": 60},
    "elliptical": {"chains": 16, "draws": 150, "warmup": 20, "thin": 8, "steps": 60},
    "laplace": {"chains": 4, "draws": 150, "starts": 4, "steps": 60},
    "svi": {"chains": 4, "draws": 150, "starts": 4, "steps": 60, "iterations": 100},
    "map": {"starts": 4, "steps": 300},
}
FEW: dict[str, dict[str, Any]] = {  # enough to see whether two runs are the same
    "hmc": {"chains": 3, "draws": 6, "warmup": 8, "starts": 2, "steps": 10},
    "nuts": {"chains": 2, "draws": 4, "warmup": 4, "starts": 2, "steps": 10, "max_tree_depth": 3},
    "langevin": {"chains": 3, "draws": 6, "warmup": 8, "thin": 1, "starts": 2, "steps": 10},
    "elliptical": {"chains": 3, "draws": 6, "warmup": 2, "thin": 2, "steps": 10},
    "laplace": {"chains": 2, "draws": 6, "starts": 2, "steps": 10},
    "svi": {"chains": 2, "draws": 6, "starts": 2, "steps": 10, "iterations": 8},
    "map": {"starts": 2, "steps": 10},
}
each_inference = pytest.mark.parametrize("name", list(KINDS))


def of_kind(*kinds: str, slow: tuple[str, ...] = ()) -> Any:
    names = [n for n, k in KINDS.items() if k in kinds]
    return pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names])


class Case:
    """A client, what it shared, and how a model that fits is bound."""

    def __init__(self, client: Client, observed: Observation, sigma: float) -> None:
        self.client, self.observed, self.sigma = client, observed, sigma
        self.model = functools.partial(logistic.model, sigma=sigma)
        self.exact = functools.partial(logistic.exact_posterior, client, observed, sigma=sigma)


@functools.cache
def case(name: str) -> Case:
    if name == "known label":  # skewed: the residual of the softmax depends on x
        client = tiny("linear", classes=2, zero=False)
        return Case(client, observe(client, 0.1), 0.1)
    if name == "float32":
        client = tiny("linear", classes=2, zero=False, dtype="float32")
        return Case(client, observe(client, 0.1), 0.1)
    if name == "gaussian":  # zero weights: exactly Gaussian
        client = tiny("linear", classes=3)
        return Case(client, observe(client, 0.3), 0.3)
    assert name == "open label"  # what is shared lies between what the two labels would share
    client = tiny("linear", classes=2, zero=False)
    x, _ = batch_of(client)
    u = [client.update(x, torch.tensor([k])).materialise() for k in range(2)]
    return Case(client, Observation(0.45 * u[0] + 0.55 * u[1]), 0.3)


def run(name: str, at: Case, progress: ProgressBar = silent, **settings: Any) -> Posterior:
    return programs.load("inference", name)(at.model, at.observed, at.client, progress=progress, **settings)


def pixels(posterior: Posterior) -> np.ndarray:
    return posterior.x.reshape(*posterior.x.shape[:2], -1).astype(np.float64)


def test_every_inference_of_the_folder_is_tested() -> None:
    assert set(programs.names("inference")) - ELSEWHERE <= set(KINDS) <= set(programs.names("inference"))
    assert set(KINDS) == set(TINY) == set(FEW)


# -- the exact posterior itself ------------------------------------------------------------------------------------


def importance(at: Case, drawn: Tensor | None = None, count: int = 100_000) -> tuple[Tensor, Tensor, Tensor]:
    """x (count, pixels) from the prior with labels y and self-normalised weights p(g | x, y): brute force."""
    generator = torch.Generator().manual_seed(5)
    x = 0.5 + 0.3 * torch.randn(count, 4, dtype=torch.float64, generator=generator)
    x, count = (x, count) if drawn is None else (drawn.flatten(1), len(drawn))
    if at.observed.labels is None:
        y = torch.randint(at.client.num_classes, (count, 1), generator=generator)
    else:
        y = at.observed.labels.expand(count, 1)
    with torch.no_grad():
        sqdist = at.client.update(x.reshape(count, 1, 1, 2, 2), y).sqdist(at.observed.g)
    return x, y[:, 0], (-0.5 * sqdist / at.sigma**2).softmax(0)


def weighted_misfit(values: Tensor, weights: Tensor, expected: Tensor) -> float:
    """The largest error of weighted means, in their standard errors (delta method)."""
    assert float(1 / weights.square().sum()) > 1000, "too few effective draws to judge the exact posterior"
    mean = weights @ values
    error = (weights.square() @ (values - mean).square()).sqrt()
    return float(((mean - expected).abs() / error).max())


@pytest.mark.parametrize("where", ["known label", "open label", "gaussian"])
def test_the_exact_posterior_agrees_with_brute_force_importance_sampling(where: str) -> None:
    at = case(where)
    x, y, weights = importance(at)
    exact = at.exact()
    mean, sd = exact.mean(), exact.sd()

    def worst(mean: Tensor, sd: Tensor) -> float:
        return weighted_misfit(torch.cat([x, (x - mean).square()], 1), weights, torch.cat([mean, sd.square()]))

    assert worst(mean, sd) <= LIMIT
    assert worst(mean + sd / 2, sd) > LIMIT
    assert worst(mean, sd / 2) > LIMIT
    probabilities = exact.label_probabilities(at.client.num_classes)
    if at.observed.labels is None:
        indicators = torch.nn.functional.one_hot(y, at.client.num_classes).double()
        assert weighted_misfit(indicators, weights, probabilities) <= LIMIT
        assert weighted_misfit(indicators, weights, probabilities.flip(0)) > LIMIT
    else:
        assert float(probabilities[at.observed.labels]) == pytest.approx(1)


def test_with_zero_weights_the_exact_posterior_is_the_conjugate_gaussian() -> None:
    at = case("gaussian")
    labels = at.observed.labels
    assert labels is not None
    delta = torch.full((3,), 1 / 3, dtype=torch.float64) - torch.nn.functional.one_hot(labels[0], 3)
    g = at.client.split(at.observed.g)["1.weight"]
    precision = 1 / 0.3**2 + delta.square().sum() / at.sigma**2
    mean = (0.5 / 0.3**2 + delta @ g / at.sigma**2) / precision
    torch.testing.assert_close(at.exact().mean(), mean, rtol=1e-8, atol=0)
    torch.testing.assert_close(at.exact().sd(), precision.rsqrt().expand(4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("where", ["known label", "open label"])
def test_independent_draws_of_the_exact_posterior_have_its_moments(where: str) -> None:
    exact = case(where).exact()
    draws = exact.sample(4000, torch.Generator().manual_seed(1))
    assert_moments(chains_of(draws), exact.mean(), exact.sd())


@pytest.mark.parametrize(
    ("client", "size"),
    [(lambda: tiny("linear", classes=3, zero=False), 1), (tiny, 1), (lambda: tiny("linear"), 2)],
    ids=["three directions", "hidden layer", "batch"],
)
def test_the_exact_posterior_refuses_what_it_does_not_know(client: Callable[[], Client], size: int) -> None:
    made = client()
    with pytest.raises(BadInput, match="the exact posterior needs"):
        logistic.exact_posterior(made, observe(made, 0.1, size=size))


# -- samplers ------------------------------------------------------------------------------------------------------


@each_inference
def test_a_result_says_what_it_is(name: str) -> None:
    at = case("known label")
    posterior = run(name, at, **FEW[name])
    assert posterior.kind == KINDS[name]
    assert posterior.x.shape[2:] == (1, *at.client.input_shape)
    assert posterior.y.shape == posterior.x.shape[:3]
    assert posterior.mode.shape == (1, *at.client.input_shape)
    assert np.all(posterior.y == int(at.observed.labels))  # type: ignore[arg-type]
    assert np.array_equal(posterior.g, at.observed.g)
    assert posterior.stats["lp"].shape == posterior.x.shape[:2]
    assert (posterior.log_weights is not None) is (KINDS[name] == "approximation")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where"),
    [
        *((n, "open label") for n, k in KINDS.items() if k == "sampler"),
        *((n, "known label") for n in ("hmc", "langevin")),
    ],
)
def test_a_sampler_has_the_exact_means_and_sds(name: str, where: str) -> None:
    """And the label's probabilities, where it is open. NUTS, of which a draw costs the most, there alone."""
    exact, found = case(where).exact(), run(name, case(where), **TINY[name])
    assert_moments(pixels(found), exact.mean(), exact.sd())
    if where == "open label":
        probabilities = exact.label_probabilities(2)
        assert 0.1 < float(probabilities[0]) < 0.45 or 0.55 < float(probabilities[0]) < 0.9  # open, and not symmetric
        assert_frequencies(found.y[..., 0], probabilities)


@pytest.mark.slow
def test_hmc_is_exact_on_a_float32_network() -> None:
    exact = case("float32").exact()
    posterior = run("hmc", case("float32"), **TINY["hmc"])
    assert posterior.x.dtype == np.float32
    assert_moments(pixels(posterior), exact.mean(), exact.sd())


@pytest.mark.slow
def test_hmc_has_the_moments_of_importance_sampling_on_a_hidden_layer_and_correlated_pixels() -> None:
    client = tiny()
    images = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    images[:, :, 0] = (images[:, :, 0] + 2 * images[:, :, 1]) / 3
    at = Case(client, observe(client, 0.1), 0.1)
    at.model = functools.partial(optimal.model, sigma=0.1, reference=images)
    drawn = priors.make(Named("gaussian"), client, images).sample(100_000)
    x, _, weights = importance(at, drawn)
    assert float(1 / weights.square().sum()) > 20_000  # the reference is far surer than the chains
    mean = weights @ x
    sd = (weights @ (x - mean).square()).sqrt()
    assert_moments(pixels(run("hmc", at, **TINY["hmc"])), mean, sd)


@pytest.mark.slow
def test_elliptical_has_the_moments_of_importance_sampling_on_a_network_with_kinks() -> None:
    client = tiny(activation="relu")
    at = Case(client, observe(client, 0.1), 0.1)
    x, _, weights = importance(at)
    assert float(1 / weights.square().sum()) > 5_000
    mean = weights @ x
    sd = (weights @ (x - mean).square()).sqrt()
    assert_moments(pixels(run("elliptical", at, **{**TINY["elliptical"], "draws": 300})), mean, sd)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the network has kinks")
@of_kind("sampler", "approximation")
def test_on_a_network_with_kinks_the_result_doubts_itself_where_it_follows_slopes(name: str) -> None:
    client = tiny(activation="relu")
    doubts = run(name, Case(client, observe(client, 0.1), 0.1), **FEW[name]).doubts
    assert any("kinks" in d for d in doubts) is (name != "elliptical")
    smooth = run(name, case("known label"), **FEW[name]).doubts
    assert not any("kinks" in d for d in smooth)


# -- approximations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("laplace", {}),
        ("svi", {"guide": "normal"}),
        *(pytest.param("svi", {"guide": g}, marks=pytest.mark.slow) for g in ("low_rank", "full", "flow")),
    ],
    ids=["laplace", "svi-normal", "svi-low_rank", "svi-full", "svi-flow"],
)
def test_an_approximation_is_exact_where_the_posterior_is_gaussian(name: str, settings: dict[str, Any]) -> None:
    at = case("gaussian")
    exact = at.exact()
    posterior = run(name, at, **{**TINY[name], **settings})
    assert_moments(pixels(posterior), exact.mean(), exact.sd())
    assert posterior.converged, posterior.doubts


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("laplace", {}),
        ("svi", {"guide": "normal"}),
        *(pytest.param("svi", {"guide": g}, marks=pytest.mark.slow) for g in ("full", "flow")),
    ],
    ids=["laplace", "svi-normal", "svi-full", "svi-flow"],
)
def test_log_weights_turn_an_approximations_draws_into_the_exact_posterior(name: str, settings: dict[str, Any]) -> None:
    """What k-hat looks at is log p − log q: weighted by it, the draws have the moments they lack by themselves."""
    at = case("known label")
    exact = at.exact()
    posterior = run(name, at, **{**TINY[name], "draws": 1500, **settings})
    assert posterior.log_weights is not None
    weights = torch.as_tensor(posterior.log_weights).softmax(0)
    x = torch.as_tensor(pixels(posterior)).flatten(0, 1)
    values = torch.cat([x, (x - exact.mean()).square()], 1)
    assert weighted_misfit(values, weights, torch.cat([exact.mean(), exact.sd().square()])) <= LIMIT
    for mean, sd in ((exact.mean() + exact.sd() / 2, exact.sd()), (exact.mean(), exact.sd() / 2)):
        values = torch.cat([x, (x - mean).square()], 1)
        assert weighted_misfit(values, weights, torch.cat([mean, sd.square()])) > LIMIT


def test_laplace_alone_is_not_the_skewed_posterior() -> None:
    """Without its weights the same draws fail: the check above has something to correct."""
    exact = case("known label").exact()
    posterior = run("laplace", case("known label"), **{**TINY["laplace"], "draws": 1500})
    assert misfit(pixels(posterior), exact.mean(), exact.sd()) > LIMIT
