"""Refractive HMC: its energy is the model's, its map is reversible, its draws are those of the posterior."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import arviz
import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from pplleak import channels
from pplleak.client import Client, networks, seeded
from pplleak.density.kinks import perceptron as kinks
from pplleak.density.kinks import perceptron_posterior, refraction
from pplleak.density.whitening import Laplace
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import refractive
from pplleak.models import dlg, optimal
from pplleak.priors.gaussian import fit_gaussian

SHAPE = (1, 2, 2)
NETWORKS = [((8,), "relu"), ((8, 6), "relu"), ((8,), "leaky_relu"), ((7, 6, 5), "leaky_relu")]
each_network = pytest.mark.parametrize(("widths", "activation"), NETWORKS)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(50, *SHAPE, generator=generator)


IMAGES = images()  # one tensor: `fit_gaussian` caches by identity


def attack(widths=(8,), activation="relu", sigma=0.3, scale=3.0, network=None):  # type: ignore[no-untyped-def]
    """(model, observed, client): a tiny perceptron with weights large enough for its kinks to matter."""
    if network is None:
        network = seeded(partial(networks.get("mlp"), SHAPE, 3, widths=widths, activation=activation), 0).double()
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(scale)
    client = Client(network, SHAPE, 3)
    generator = torch.Generator().manual_seed(2)
    y = torch.tensor([1])
    u = client.update(IMAGES[:1].to(client.dtype), y).materialise().double()
    g = u + sigma * torch.randn(u.shape, generator=generator, dtype=torch.float64)
    model = partial(optimal.model, sigma=sigma, reference=IMAGES, prior="gaussian:floor=0.4")
    return model, Observation(g.to(client.dtype), 1, y), client


def aimed(widths=(8,), activation="relu", sigma=0.3):  # type: ignore[no-untyped-def]
    """(density, target, laplace) in some whitened coordinates with a dense factor."""
    density, net = perceptron_posterior.prepare(*attack(widths, activation, sigma))
    generator = torch.Generator().manual_seed(3)
    factor = 0.5 * torch.eye(density.dim) + 0.1 * torch.randn(density.dim, density.dim, generator=generator)
    laplace = Laplace(torch.randn(density.dim, generator=generator).double(), factor.double(), 0.0, 0)
    return density, refractive.aim(net, perceptron_posterior.read_affine(density), laplace), laplace


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_network
def test_energy_and_force_are_the_densitys(widths: tuple[int, ...], activation: str) -> None:
    density, target, laplace = aimed(widths, activation)
    w = 2 * normal(32, density.dim, seed=4)
    energy, force = refraction.energy_and_force(target, refraction.place(target, w))
    value, gradient = density.value_and_grad(laplace.decode(w))
    gap = energy + value
    assert float(gap.max() - gap.min()) < 1e-8 * float(energy.abs().max())
    torch.testing.assert_close(force, -gradient @ laplace.factor, rtol=1e-8, atol=1e-8)
    with pytest.raises(BadInput, match="density"):
        perceptron_posterior.check(density, replace(target.net, sigma=1.01 * target.net.sigma))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_closed_jump_is_the_difference_of_energies(activation: str) -> None:
    _, target, _ = aimed((8,), activation)
    state = refraction.place(target, normal(64, 4, seed=5))
    unit = torch.arange(64) % 8
    h = state.h.scatter(1, unit[:, None], 0.0)  # at the kink
    sqnorm = target.sqnorm.value(state.w)
    other = kinks.flipped(state.masks, unit)
    expected = target.net.energy(h, state.q, sqnorm, other) - target.net.energy(h, state.q, sqnorm, state.masks)
    torch.testing.assert_close(target.net.jump(h, state.q, sqnorm, state.masks, unit), expected, rtol=1e-9, atol=1e-9)
    assert float(expected.abs().max()) > 0.1


@each_network
def test_normals_are_the_gradients_of_the_preactivations(widths: tuple[int, ...], activation: str) -> None:
    _, target, _ = aimed(widths, activation)
    h = target.h0 + normal(20, widths[0], seed=6)
    masks = target.net.pattern(h)
    unit = torch.arange(20) % masks.shape[1]
    seen = h.clone().requires_grad_()
    (expected,) = torch.autograd.grad(target.net.preactivations(seen, masks).gather(1, unit[:, None]).sum(), seen)
    torch.testing.assert_close(target.net.normal(masks, unit), expected)
    assert bool(((target.net.preactivations(h, masks) > 0) == masks).all())


@each_network
def test_reversible_and_masks_agree_with_the_position(widths: tuple[int, ...], activation: str) -> None:
    _, target, _ = aimed(widths, activation)
    start, p = refraction.place(target, normal(64, 4, seed=7)), normal(64, 4, seed=8)
    sizes = 0.1 + 0.2 * torch.rand(64, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    _, force = refraction.energy_and_force(target, start)
    end, _, force, q, events = refraction.trajectory(target, start, force, p, sizes, 6)
    assert int(events.sum()) > 100  # kinks were met …
    assert int((end.masks != start.masks).sum()) > 20  # … and crossed
    again = refraction.place(target, end.w)
    assert torch.equal(again.masks, end.masks)
    torch.testing.assert_close(again.h, end.h, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again.q, end.q, rtol=1e-9, atol=1e-9)
    back, _, _, r, back_events = refraction.trajectory(target, end, force, -q, sizes, 6)
    torch.testing.assert_close(back.w, start.w, rtol=0, atol=1e-8)
    torch.testing.assert_close(-r, p, rtol=0, atol=1e-8)
    assert torch.equal(back.masks, start.masks) and torch.equal(back_events, events)


@pytest.mark.slow
@each_network
def test_short_steps_conserve_energy_across_kinks(widths: tuple[int, ...], activation: str) -> None:
    _, target, _ = aimed(widths, activation)
    start, p = refraction.place(target, normal(64, 4, seed=10)), normal(64, 4, seed=11)
    energy, force = refraction.energy_and_force(target, start)

    def error(steps: int, jumps: bool = True) -> float:
        sizes = torch.full((64,), 1.0 / steps, dtype=torch.float64)
        _, end, _, q, _ = refraction.trajectory(target, start, force, p, sizes, steps, jumps)
        return float((end + 0.5 * q.square().sum(1) - energy - 0.5 * p.square().sum(1)).abs().median())

    fine = error(400)
    assert fine < 0.02
    assert fine < 0.3 * error(40)
    assert error(400, jumps=False) > 5 * fine


def sampled(target, chains: int, draws: int) -> Tensor:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    state, out = refraction.place(target, torch.randn(chains, 4, dtype=torch.float64)), []
    for t in range(draws + 25):
        state, _, _, _ = refraction.step(target, state, 0.4, 4)
        if t >= 25:
            out.append(state.w)
    return torch.stack(out, 1)


def moments_of(density) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Means and second moments of z by importance sampling, with their standard errors."""
    z = normal(100_000, 4, seed=12)
    with torch.no_grad():
        log_weights = torch.cat([density(part) for part in z.split(50_000)]) + 0.5 * z.square().sum(1)
    weights = log_weights.softmax(0)
    assert float(1 / weights.square().sum()) > 2500  # else the reference itself is not to be trusted
    moments = torch.cat([z, z.square(), z[:, :1] * z[:, 1:]], 1)
    expected = (weights[:, None] * moments).sum(0)
    return expected, (weights.square()[:, None] * (moments - expected).square()).sum(0).sqrt()


def deviation(reference: tuple[Tensor, Tensor], target, laplace) -> float:  # type: ignore[no-untyped-def]
    """The largest |sampler − importance sampling| over means and second moments of z, in standard errors."""
    expected, expected_se = reference
    draws = laplace.decode(sampled(target, 256, 16).flatten(0, 1)).unflatten(0, (256, 16))
    got = torch.cat([draws, draws.square(), draws[..., :1] * draws[..., 1:]], -1).numpy()
    ess = np.asarray(arviz.ess(got, method="mean"))
    assert ess.min() > 500
    se = np.sqrt(got.var((0, 1)) / ess + expected_se.numpy() ** 2)
    return float((np.abs(got.mean((0, 1)) - expected.numpy()) / se).max())


@pytest.mark.slow
@each_network
def test_moments_equal_importance_sampling_and_a_sampler_without_jumps_is_rejected(
    widths: tuple[int, ...], activation: str
) -> None:
    density, target, laplace = aimed(widths, activation, sigma=1.0)
    reference = moments_of(density)
    assert deviation(reference, target, laplace) < 5
    # wrong twin: the jumps are left out of the energy and of the events, consistently
    wrong = replace(target, net=WithoutJumps(*vars(target.net).values()))
    assert deviation(reference, wrong, laplace) > 5


class WithoutJumps(kinks.Perceptron):
    """A target that takes every unit for active: the smooth function that a careless sampler would use."""

    def energy(self, h: Tensor, q: Tensor, sqnorm: Tensor, masks: Tensor) -> Tensor:
        return super().energy(h, q, sqnorm, torch.ones_like(masks))

    def jump(self, h: Tensor, q: Tensor, sqnorm: Tensor, masks: Tensor, unit: Tensor) -> Tensor:
        return torch.zeros_like(sqnorm)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_run(dtype: torch.dtype) -> None:
    network = seeded(partial(networks.get("mlp"), SHAPE, 3, widths=(8,), activation="relu"), 0).to(dtype)
    model, observed, client = attack(network=network, sigma=0.5)
    settings = {"seed": 1, "chains": 16, "draws": 40, "warmup": 30, "steps": 50}
    found = [refractive.run(model, observed, client, **settings) for _ in range(2)]
    assert np.array_equal(found[0].x, found[1].x)
    assert found[0].x.shape == (16, 40, 1, *SHAPE) and found[0].kind == "sampler"
    assert found[0].rhat_max is not None and found[0].rhat_max < 1.05
    assert next(client.network.parameters()).dtype == dtype  # the caller's client is left as it was


def bounded(client, batch_size=1):  # type: ignore[no-untyped-def]
    return dlg.model(client, batch_size, sigma=0.3)


def heavy(client, batch_size=1):  # type: ignore[no-untyped-def]
    one = torch.ones((), dtype=client.dtype)
    x = pyro.sample("x", pyro.distributions.StudentT(5 * one, 0 * one, one).expand([batch_size, *SHAPE]).to_event(4))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), 0.3))


def test_says_where_it_does_not_apply() -> None:
    model, observed, client = attack()

    def refused(match: str, model=model, observed=observed, client=client) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(BadInput, match=match) as caught:
            refractive.run(model, observed, client, chains=4, draws=2, warmup=2, steps=2)
        assert "\n" not in str(caught.value)

    refused("affine", model=bounded)
    refused("Gaussian prior", model=heavy)
    refused("label", observed=replace(observed, labels=None))
    refused("one example", observed=Observation(observed.g, 2, torch.tensor([1, 0])))
    conv = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))
    for network, said in ((conv, "Conv2d"), (smooth, "GELU"), (networks.get("linear")(SHAPE, 3), "at least one")):
        m, o, c = attack(network=network.double())
        refused(said, m, o, c)


def test_a_model_that_says_more_is_refused() -> None:
    _, observed, client = attack()
    prior = fit_gaussian(IMAGES, floor=0.4, dtype=torch.float64)

    def model(client, batch_size=1):  # type: ignore[no-untyped-def]
        x = pyro.deterministic("x", prior.decode(pyro.sample("z", prior.coefficients(batch_size))))
        y = pyro.sample("y", client.label_prior(batch_size))
        with pyro.poutine.scale(scale=2.0):
            return pyro.sample("g", channels.Gaussian(client.update(x, y), 0.3))

    with pytest.raises(BadInput, match="nothing more"):
        refractive.run(model, observed, client, chains=4, draws=2, warmup=2, steps=2)
