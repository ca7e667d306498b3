"""Proper priors: densities integrate to one or match a closed form, draws follow them, fits are the best ones."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_moments, chains_of
from sklearn.decomposition import PCA
from torch import Tensor, nn

from pplleak.errors import BadInput
from pplleak.priors import flow, vae
from pplleak.priors._splines import coupling_spline
from pplleak.priors.flow import FlowOnVAE
from pplleak.priors.flow import fit as fit_flow
from pplleak.priors.gmrf import GMRF, fit_gmrf
from pplleak.priors.logit_normal import fit_logit_normal
from pplleak.priors.ppca import fit_ppca
from pplleak.priors.vae import VAE

FITTED = ("gaussian", "ppca", "gmrf", "stationary", "logit_normal", "mixture", "flow")
LEARNT = ("mixture", "flow", "vae")
BUDGET: dict[str, dict[str, Any]] = {
    "mixture": {"rank": 2, "components": 8},
    "flow": {"rank": 2, "hidden": 16, "epochs": 15, "lr": 1e-2},
    "vae": {"latents": 1, "hidden": 32, "epochs": 100, "lr": 1e-2},
}


def arc(count: int = 1000, seed: int = 0) -> Tensor:
    """Images (count, 1, 1, 3) along three quarters of a circle in their first two pixels: far from Gaussian."""
    generator = torch.Generator().manual_seed(seed)
    angle = 1.5 * math.pi * torch.rand(count, generator=generator)
    x = torch.stack([0.5 + 0.3 * angle.cos(), 0.5 + 0.3 * angle.sin(), torch.full((count,), 0.5)], 1)
    noise = torch.randn(count, 3, generator=generator)
    return (x + 0.04 * noise).clamp(0, 1).reshape(count, 1, 1, 3)


def fits(name: str) -> Callable[..., Any]:
    """The fit of a prior: of one that is kept in files by the name that they all have."""
    module = importlib.import_module(f"pplleak.priors.{name}")
    return getattr(module, "fit" if name in LEARNT else f"fit_{name}")


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    images = arc()
    return {name: fits(name)(images, **BUDGET.get(name, {})) for name in dict.fromkeys(FITTED + LEARNT)}


def grid(low: float, high: float, count: int = 60) -> tuple[Tensor, float]:
    """Every point of a cube as an image (count³, 1, 1, 3), and the volume of a cell."""
    edges = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(edges, edges, edges).reshape(-1, 1, 1, 3), ((high - low) / count) ** 3


@pytest.mark.slow  # the fits of `fitted`
@pytest.mark.parametrize("name", FITTED)
def test_the_density_integrates_to_one_and_the_draws_have_its_moments(fitted: dict[str, Any], name: str) -> None:
    prior = fitted[name]
    x, volume = grid(0.0, 1.0) if name == "logit_normal" else grid(-0.6, 1.6)
    mass = prior.log_prob(x).exp() * volume
    assert float(mass.sum()) == pytest.approx(1, abs=5e-3)
    flat = x.reshape(-1, 3)
    mean = mass @ flat / mass.sum()
    sd = (mass @ (flat - mean).square() / mass.sum()).sqrt()
    draws = prior.draw(4000)
    assert draws.shape == (4000, 1, 1, 3)
    assert_moments(chains_of(draws.flatten(1)), mean, sd)


@pytest.mark.slow  # the fits of `fitted`
def test_the_vaes_bound_is_just_below_the_integral_over_its_latent(fitted: dict[str, Any]) -> None:
    vae = fitted["vae"]
    x = arc(20, seed=5)
    z = torch.linspace(-6, 6, 4001)[:, None]
    centre = vae.decoder(z).double()
    each = torch.distributions.Normal(centre, vae.sd.double()).log_prob(x.flatten(1).double()[:, None]).sum(-1)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0]).double()
    exact = (each + standard).logsumexp(1) + math.log(12 / 4000)
    torch.manual_seed(0)
    bound = vae.log_prob(x, particles=2000)
    assert float((bound - exact).abs().max()) < 0.2
    twin = dataclasses.replace(vae, sd=vae.sd * 1.5)
    assert float((twin.log_prob(x, particles=2000) - exact).abs().max()) > 0.2
    torch.manual_seed(0)  # few particles: lower on the average, never higher
    assert float(torch.stack([vae.log_prob(x, particles=1) for _ in range(20)]).mean()) < float(exact.mean())


@pytest.mark.slow
def test_a_flow_on_a_vaes_latents_has_the_density_of_the_integral_over_them() -> None:
    torch.manual_seed(0)
    encoder, decoder = vae.perceptrons(3, 2, 8)
    for layer in decoder[::2]:  # so that an image speaks of its latents
        layer.weight.data.mul_(3.0)
    encoder[-1].bias.data[2:] = 0.7  # q of twice the standard normal's width: it covers what the flow may be
    latents = VAE(encoder, decoder, torch.full((3,), 0.2), (1, 1, 3))
    spline = coupling_spline(2, hidden=8, dtype=torch.float32)
    for p in spline.parameters():  # no identity
        p.data.add_(0.2 * torch.randn_like(p))
    prior, x = FlowOnVAE(latents, spline), arc(5)
    edges = torch.linspace(-8, 8, 301)
    z = torch.cartesian_prod(edges, edges)

    def integral(log_prior: Tensor) -> Tensor:
        each = torch.distributions.Normal(decoder(z).double(), 0.2).log_prob(x.flatten(1).double()[:, None]).sum(-1)
        return (each + log_prior.double()).logsumexp(1) + 2 * math.log(16 / 300)

    with torch.no_grad():
        exact = integral(spline().log_prob(z))
        standard = integral(torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))
    assert float((prior.log_prob(x, particles=50_000) - exact).abs().max()) < 0.05
    assert float((latents.log_prob(x, particles=50_000) - standard).abs().max()) < 0.05
    assert float((standard - exact).abs().max()) > 0.2  # the twin: a VAE's own prior


@pytest.mark.slow
def test_a_flow_is_fitted_to_the_latents_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a VAE whose latents are the first two pixels: three quarters of a circle, and no standard normal."""
    encoder, decoder = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(2, 3))
    with torch.no_grad():
        for layer in (encoder[0], decoder[0]):
            layer.weight.zero_()
        encoder[0].weight[:2, :2] = torch.eye(2) / 0.3
        encoder[0].bias.copy_(torch.tensor([-0.5 / 0.3, -0.5 / 0.3, -2.0, -2.0]))
        decoder[0].weight[:2] = 0.3 * torch.eye(2)
        decoder[0].bias.fill_(0.5)
    latents = VAE(encoder, decoder, torch.full((3,), 0.04), (1, 1, 3))
    monkeypatch.setattr(flow, "fit_vae", lambda images, **settings: latents)
    prior, unseen = fit_flow(arc(), on="vae", **BUDGET["flow"]), arc(300, seed=9)
    assert isinstance(prior, FlowOnVAE)
    gain = prior.log_prob(unseen) - latents.log_prob(unseen)
    assert float(gain.mean() / gain.std()) * math.sqrt(len(unseen)) > 5
    assert prior.draw(2).shape == (2, 1, 1, 3)


@pytest.mark.slow  # the fits of `fitted`
def test_the_vaes_images_leave_the_decoders_image_by_its_sd(fitted: dict[str, Any]) -> None:
    vae = fitted["vae"]
    z = vae.latent().sample((4000,))
    x = vae.decode(z, vae.noise().sample((4000,)))
    assert x.shape == (4000, 1, 1, 1, 3)
    assert_moments(chains_of(x.flatten(1) - vae.decoder(z)[:, 0]), torch.zeros(3), vae.sd)


@pytest.mark.slow  # the fits of `fitted`
@pytest.mark.parametrize("name", LEARNT)
def test_a_learnt_prior_predicts_unseen_images_better_than_a_gaussian(fitted: dict[str, Any], name: str) -> None:
    unseen = arc(500, seed=9)

    def errors_above(other: Any) -> float:
        """Standard errors by which `other` gains more than a fifth of a nat an image."""
        gain = other.log_prob(unseen) - fitted["gaussian"].log_prob(unseen) - 0.2
        return float(gain.mean() / gain.std()) * math.sqrt(len(unseen))

    assert errors_above(fitted[name]) > 5
    assert errors_above(fitted["ppca"]) < 5  # Gaussian itself


def dense_gmrf(prior: GMRF) -> torch.distributions.MultivariateNormal:
    """The slow, obvious one: the Laplacian edge by edge."""
    channels, rows, columns = prior.input_shape
    laplacian = torch.zeros(rows * columns, rows * columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < rows and m < columns:
                    a, b = i * columns + j, k * columns + m
                    laplacian[a, a] += 1
                    laplacian[b, b] += 1
                    laplacian[a, b] -= 1
                    laplacian[b, a] -= 1
    one = prior.smooth * laplacian + prior.pull * torch.eye(rows * columns, dtype=torch.float64)
    mean = prior.mean.repeat_interleave(rows * columns)
    return torch.distributions.MultivariateNormal(mean, precision_matrix=torch.block_diag(*[one] * channels))


def a_gmrf() -> GMRF:
    mean = torch.tensor([0.3, 0.6], dtype=torch.float64)
    return GMRF(mean, torch.tensor(20.0).double(), torch.tensor(3.0).double(), (2, 3, 4))


def test_the_gmrf_is_the_normal_of_the_grids_laplacian() -> None:
    prior = a_gmrf()
    dense = dense_gmrf(prior)
    x = torch.rand(5, 2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(x), dense.log_prob(x.flatten(1)), rtol=1e-10, atol=1e-10)
    twin = dataclasses.replace(prior, smooth=prior.smooth * 1.01)
    assert not torch.allclose(twin.log_prob(x), dense.log_prob(x.flatten(1)), rtol=1e-4)
    columns = prior.decode(torch.eye(24, dtype=torch.float64).reshape(24, 2, 3, 4)).flatten(1) - dense.mean
    torch.testing.assert_close(columns.mT @ columns, dense.covariance_matrix, rtol=1e-10, atol=1e-10)


def test_the_fitted_gmrf_is_the_likeliest_and_finds_what_the_images_came_from() -> None:
    images = a_gmrf().draw(3000)
    fitted = fit_gmrf(images, floor=1e-6)
    best = float(fitted.log_prob(images).mean())
    for name in ("smooth", "pull"):
        for factor in (0.9, 1.1):
            twin = dataclasses.replace(fitted, **{name: getattr(fitted, name) * factor})
            assert float(twin.log_prob(images).mean()) < best
    assert float(fitted.smooth) == pytest.approx(20, rel=0.05)
    assert float(fitted.pull) == pytest.approx(3, rel=0.2)


def test_ppca_is_the_normal_of_its_covariance_and_fits_what_scikit_learn_fits() -> None:
    images = torch.rand(50, 1, 2, 4, dtype=torch.float64)
    images[..., 1] = images[..., 0]
    prior = fit_ppca(images, rank=3, floor=1e-9)
    flat = images.flatten(1).numpy()
    reference = PCA(3).fit(flat)
    covariance = reference.get_covariance() * 49 / 50  # scikit-learn divides by N − 1
    columns = (prior.decode(torch.eye(8, dtype=torch.float64)).flatten(1) - prior.mean).numpy()
    np.testing.assert_allclose(columns.T @ columns, covariance, rtol=1e-9, atol=1e-12)
    dense = torch.distributions.MultivariateNormal(torch.from_numpy(flat.mean(0)), torch.from_numpy(covariance))
    torch.testing.assert_close(prior.log_prob(images), dense.log_prob(torch.from_numpy(flat)), rtol=1e-9, atol=1e-9)
    assert not np.allclose(columns.T @ columns, reference.get_covariance(), rtol=1e-3)


def test_logit_normal_images_stay_in_the_box_and_none_outside_has_density() -> None:
    prior = fit_logit_normal(arc())
    assert float(prior.draw(1000).min()) > 0 and float(prior.draw(1000).max()) < 1
    x = torch.tensor([[0.5, 0.5, 0.5], [0.5, 1.0, 0.5], [-0.1, 0.5, 0.5]]).reshape(3, 1, 1, 3)
    assert prior.log_prob(x).isfinite().tolist() == [True, False, False]


@pytest.mark.slow  # the fits of `fitted`
def test_the_mixtures_sites_have_the_density_that_it_claims(fitted: dict[str, Any]) -> None:
    prior = fitted["mixture"]
    z, w = prior.leading(1).sample((50,)), prior.rest(1).sample((50,))
    claimed = prior.log_prob(prior.decode(z, w)[:, 0])
    sites = prior.leading(1).log_prob(z) + prior.rest(1).log_prob(w) - prior.base.log_det
    torch.testing.assert_close(sites, claimed, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [*FITTED, "vae"])
def test_one_image_is_too_few(name: str) -> None:
    with pytest.raises(BadInput, match="at least 2 images"):
        fits(name)(arc(1))


def test_coordinates_that_no_flow_is_fitted_on_are_refused() -> None:
    with pytest.raises(BadInput, match="unknown coordinates 'vea': did you mean vae"):
        fit_flow(arc(10), on="vea")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="at least 2 latents"):
        fit_flow(arc(10), on="vae", rank=1)


def test_pixels_without_neighbours_have_no_gmrf() -> None:
    with pytest.raises(BadInput, match="channels, rows, columns"):
        fit_gmrf(torch.rand(10, 4))
