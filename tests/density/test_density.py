"""log p(z | g) on flat coordinates: equal to the model's own densities, written out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_frequencies, assert_moments, chains_of, observe, tiny
from pyro import poutine
from torch import Tensor

from pplleak import channels, density
from pplleak.client import Client
from pplleak.client.training import LocalTraining
from pplleak.density import Density
from pplleak.models import dlg, logistic, optimal

SIGMA = 0.3
REFERENCE = torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(3))


def log_likelihood(client: Client, g: Tensor, x: Tensor, y: Tensor, sigma: float = SIGMA) -> Tensor:
    """log p(g | x, y) for x (chains, batch, *shape), y (batch,), by the materialised gradient."""
    u = client.materialised(x, y.expand(len(x), -1)).materialise()
    return dist.Normal(u, sigma).log_prob(g).sum(-1)


def log_normal(z: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    centred = (z - loc) / scale
    return (-0.5 * centred**2 - math.log(scale * math.sqrt(2 * math.pi))).flatten(1).sum(1)


def of_logistic(client: Client, z: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """x at z, and log p(z)."""
    return z.reshape(-1, size, *client.input_shape), log_normal(z, 0.5, 0.3)


def of_dlg(client: Client, z: Tensor, size: int) -> tuple[Tensor, Tensor]:
    x = torch.sigmoid(z)
    return x.reshape(-1, size, *client.input_shape), (x * (1 - x)).log().sum(1)


def of_gaussian(client: Client, z: Tensor, size: int) -> tuple[Tensor, Tensor]:
    flat = REFERENCE.flatten(1).double()
    covariance = torch.cov(flat.mT, correction=0) + 0.02**2 * torch.eye(4)
    values, vectors = torch.linalg.eigh(covariance)
    x = flat.mean(0) + z.reshape(-1, size, 4) @ (vectors * values.sqrt()).mT
    return x.reshape(-1, size, *client.input_shape), log_normal(z)


MODELS: dict[str, tuple[Callable[..., Any], Callable[..., tuple[Tensor, Tensor]]]] = {
    "logistic": (lambda c, b=1: logistic.model(c, b, sigma=SIGMA), of_logistic),
    "dlg": (lambda c, b=1: dlg.model(c, b, sigma=SIGMA), of_dlg),
    "gaussian": (lambda c, b=1: optimal.model(c, b, sigma=SIGMA, reference=REFERENCE), of_gaussian),
}
each_model = pytest.mark.parametrize("name", list(MODELS))


def made(name: str, size: int = 1, known: bool = True) -> tuple[Density, Client, Tensor]:
    client = tiny()
    built = density.build(MODELS[name][0], client, observe(client, SIGMA, size=size, known=known))
    return built, client, torch.randn(5, built.dim, dtype=torch.float64)


@each_model
@pytest.mark.parametrize("size", [1, 2])
def test_known_labels_give_the_joint_density_written_out_by_hand(name: str, size: int) -> None:
    built, client, z = made(name, size)
    x, log_prior = MODELS[name][1](client, z, size)
    labels = built.observed.labels
    assert labels is not None
    expected = log_likelihood(client, built.observed.g, x, labels) + log_prior - size * math.log(3)
    torch.testing.assert_close(built(z), expected, rtol=1e-9, atol=0)


def sum_over_all_labels(built: Density, z: Tensor) -> Tensor:
    """log Σ_y p(z, y, g) over all classes ** batch label vectors, each by a density of known labels: the slow form."""
    size, classes = built.observed.batch_size, built.client.num_classes
    each = [
        density.build(built.model, built.client, replace(built.observed, labels=torch.tensor(labels)))(z)
        for labels in itertools.product(range(classes), repeat=size)
    ]
    assert len(each) == classes**size
    return torch.stack(each).logsumexp(0)


def mean_over_orders(built: Density, z: Tensor) -> Tensor:
    """log of the mean of exp(density) over all orders of the examples: the density of the unordered batch."""
    size = built.observed.batch_size
    rows = z.reshape(len(z), size, -1)
    each = [built(rows[:, list(order)].flatten(1)) for order in itertools.permutations(range(size))]
    return torch.stack(each).logsumexp(0) - math.log(len(each))


@each_model
@pytest.mark.parametrize("size", [1, 2, 3])
def test_unknown_labels_are_summed_over_all_label_vectors_up_to_their_order(name: str, size: int) -> None:
    built, _, z = made(name, size, known=False)
    expected = sum_over_all_labels(built, z)
    torch.testing.assert_close(mean_over_orders(built, z), expected, rtol=1e-10, atol=0)
    if size == 1:
        return
    assert len(built.discrete["y"]) == math.comb(size + 2, size)
    assert (built(z) - expected).abs().max() > 1e-3, "in the given order it is another density, and says so"
    unweighed = replace(built, log_orders={})
    assert (mean_over_orders(unweighed, z) - expected).abs().max() > 1e-3


def positions(client: Client, size: int = 1) -> None:
    """An adversary who knows that the first example is darker than the others."""
    loc = torch.linspace(0, 1, size, dtype=torch.float64)[:, None, None, None].expand(size, *client.input_shape)
    x = pyro.sample("x", dist.Normal(loc, 1.0).to_event(4))
    y = pyro.sample("y", client.label_prior(size))
    pyro.sample("g", channels.Gaussian(client.update(x, y), SIGMA))


def test_examples_that_have_a_place_are_summed_over_all_orders_of_the_labels() -> None:
    client = tiny()
    built = density.build(positions, client, observe(client, SIGMA, size=2, known=False))
    z = torch.randn(5, built.dim, dtype=torch.float64)
    assert not built.exchangeable
    torch.testing.assert_close(built(z), sum_over_all_labels(built, z), rtol=1e-10, atol=0)


def test_minibatches_give_examples_a_place() -> None:
    client = tiny()
    observed = observe(client, SIGMA, size=2, known=False)
    for batch_size, expected in ((None, True), (1, False)):
        trained = Client(client.network.requires_grad_(), (1, 2, 2), 3, LocalTraining(0.1, 2, batch_size))
        assert density.build(MODELS["logistic"][0], trained, observed).exchangeable is expected


@pytest.mark.parametrize(("labels", "expected"), [([1, 1], True), ([0, 1], False), (None, True)])
def test_known_labels_tell_examples_apart_unless_they_are_equal(labels: list[int] | None, expected: bool) -> None:
    client = tiny()
    y = None if labels is None else torch.tensor(labels)
    observed = replace(observe(client, SIGMA, size=2), labels=y)
    assert density.build(MODELS["dlg"][0], client, observed).exchangeable is expected


def test_looking_at_the_order_draws_nothing_from_the_generator() -> None:
    client = tiny()
    observed, state = observe(client, SIGMA, size=2, known=False), torch.get_rng_state()
    assert density.build(MODELS["gaussian"][0], client, observed).exchangeable
    assert torch.equal(torch.get_rng_state(), state)


@each_model
@pytest.mark.parametrize("known", [True, False])
def test_chains_do_not_see_each_other(name: str, known: bool) -> None:
    built, _, z = made(name, known=known)
    value, gradient = built.value_and_grad(z)
    assert value.shape == (5,)
    assert value.dtype == torch.float64
    for k in range(5):
        alone, slope = built.value_and_grad(z[k : k + 1])
        torch.testing.assert_close(value[k : k + 1], alone, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient[k : k + 1], slope, rtol=1e-10, atol=1e-10)


@each_model
@pytest.mark.parametrize("known", [True, False])
def test_the_gradient_is_that_of_finite_differences(name: str, known: bool) -> None:
    built, _, z = made(name, known=known)
    direction = torch.randn_like(z)
    h = 1e-5
    slope = (built(z + h * direction) - built(z - h * direction)) / (2 * h)
    gradient = (built.value_and_grad(z)[1] * direction).sum(1)
    torch.testing.assert_close(slope, gradient, rtol=1e-5, atol=1e-5)


@each_model
def test_constrain_and_unconstrain_are_inverse_and_log_det_is_the_jacobians(name: str) -> None:
    built, _, z = made(name, 2)
    values, log_det = built.constrain(z)
    torch.testing.assert_close(built.unconstrain(values), z, rtol=1e-9, atol=1e-9)
    for k in range(len(z)):
        flat = lambda one: torch.cat([v.flatten() for v in built.constrain(one[None])[0].values()])  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(flat, z[k])
        assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(log_det[k]), rel=1e-9, abs=1e-12)
    assert built.bounded is (name == "dlg")
    torch.testing.assert_close(built(z) - built(z, jacobian=False), log_det, rtol=1e-9, atol=1e-9)


@each_model
def test_temperature_is_the_exponent_of_the_likelihood_for_each_chain(name: str) -> None:
    built, client, z = made(name)
    labels = built.observed.labels
    assert labels is not None
    x, log_prior = MODELS[name][1](client, z, 1)
    temperatures = torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0], dtype=torch.float64)
    expected = temperatures * log_likelihood(client, built.observed.g, x, labels) + log_prior - math.log(3)
    torch.testing.assert_close(built(z, temperature=temperatures), expected, rtol=1e-9, atol=0)
    for k, temperature in enumerate(temperatures.tolist()):
        torch.testing.assert_close(built(z[k : k + 1], temperature=temperature)[0], expected[k], rtol=1e-9, atol=0)


@each_model
def test_prior_draws_follow_the_models_prior(name: str) -> None:
    built, client, _ = made(name, known=False)
    z = built.sample_prior(4000)
    x, _ = MODELS[name][1](client, z, 1)
    if name == "gaussian":
        flat = REFERENCE.flatten(1).double()
        mean, sd = flat.mean(0), (flat.var(0, correction=0) + 0.02**2).sqrt()
    else:
        mean = torch.full((4,), 0.5)
        sd = torch.full((4,), 0.3 if name == "logistic" else 12**-0.5)
    assert_moments(chains_of(x), mean, sd)


@each_model
def test_images_are_the_models_x_and_known_labels_stay(name: str) -> None:
    built, client, z = made(name, 2)
    x, y = built.images(z)
    torch.testing.assert_close(x, MODELS[name][1](client, z, 2)[0], rtol=1e-9, atol=1e-12)
    assert torch.equal(y, built.observed.labels.expand(5, 2))  # type: ignore[union-attr]


def test_unknown_labels_are_drawn_from_their_posterior_given_x() -> None:
    client, sigma = tiny(), 1.0  # noise enough to leave the label open
    observed = observe(client, sigma, known=False)
    built = density.build(lambda c, b: logistic.model(c, b, sigma=sigma), client, observed)
    z = torch.full((1, built.dim), 0.4, dtype=torch.float64)
    x, _ = of_logistic(client, z, 1)
    logits = torch.stack([log_likelihood(client, observed.g, x, torch.tensor([k]), sigma)[0] for k in range(3)])
    _, y = built.images(z.expand(4000, -1))
    assert_frequencies(y.reshape(4, -1).numpy(), logits.softmax(0))


def simplex(client: Client, size: int = 1) -> None:
    """A site with fewer free coordinates than entries."""
    share = pyro.sample("share", dist.Dirichlet(torch.full((4,), 2.0, dtype=torch.float64)))
    x = pyro.deterministic("x", share.reshape(*share.shape[:-1], 1, *client.input_shape))
    y = pyro.sample("y", client.label_prior(size))
    pyro.sample("g", channels.Gaussian(client.update(x, y), SIGMA))


def test_a_simplex_site_has_one_free_coordinate_less() -> None:
    client = tiny()
    built = density.build(simplex, client, observe(client, SIGMA))
    assert built.dim == 3
    z = torch.randn(4, 3, dtype=torch.float64)
    values, log_det = built.constrain(z)
    share = values["share"]
    torch.testing.assert_close(share.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(built.unconstrain(values), z)
    labels = built.observed.labels
    assert labels is not None
    prior = dist.Dirichlet(torch.full((4,), 2.0, dtype=torch.float64)).log_prob(share)
    expected = log_likelihood(client, built.observed.g, share.reshape(4, 1, 1, 2, 2), labels) + prior + log_det
    torch.testing.assert_close(built(z), expected - math.log(3), rtol=1e-9, atol=0)


def two_noises(client: Client, size: int = 1) -> None:
    """A second discrete site: which of two noises the channel has."""
    x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand([size, 1, 2, 2]).to_event(4))
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8], dtype=torch.float64)))
    y = pyro.sample("y", client.label_prior(size))
    pyro.sample("g", channels.Gaussian(client.update(x, y), torch.tensor([0.3, 0.6], dtype=torch.float64)[k]))


def test_two_discrete_sites_are_summed_over_their_product_and_drawn_jointly() -> None:
    client = tiny()
    built = density.build(two_noises, client, observe(client, SIGMA, known=False))
    z = torch.randn(4, 4, dtype=torch.float64)
    x = z.reshape(4, 1, 1, 2, 2)
    terms = torch.stack(
        [
            log_likelihood(client, built.observed.g, x, torch.tensor([y]), sigma) + math.log(p / 3)
            for y in range(3)
            for sigma, p in ((0.3, 0.2), (0.6, 0.8))
        ]
    )
    torch.testing.assert_close(built(z), terms.logsumexp(0) + log_normal(z), rtol=1e-10, atol=0)
    _, drawn = built.images(z[:1].expand(4000, -1))
    assert_frequencies(drawn.reshape(4, -1).numpy(), terms[:, 0].softmax(0).reshape(3, 2).sum(1))


@pytest.mark.parametrize("wrap", [poutine.scale, poutine.mask], ids=["scale", "mask"])
def test_scaled_and_masked_sites_count_as_pyro_counts_them(wrap: Callable[..., Any]) -> None:
    client = tiny()

    def model(client: Client, size: int = 1) -> None:
        with wrap(scale=0.5) if wrap is poutine.scale else wrap(mask=torch.tensor(False)):
            x = pyro.sample(
                "x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand([size, 1, 2, 2]).to_event(4)
            )
        y = pyro.sample("y", client.label_prior(size))
        pyro.sample("g", channels.Gaussian(client.update(x, y), SIGMA))

    built = density.build(model, client, observe(client, SIGMA))
    z = torch.randn(4, 4, dtype=torch.float64)
    labels = built.observed.labels
    assert labels is not None
    share = 0.5 if wrap is poutine.scale else 0.0
    likelihood = log_likelihood(client, built.observed.g, z.reshape(4, 1, 1, 2, 2), labels)
    torch.testing.assert_close(built(z), likelihood + share * log_normal(z) - math.log(3), rtol=1e-10, atol=0)
