"""Priors of large images: no matrix of pixels², and the very distribution that such a matrix gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pplleak import memory
from pplleak.errors import BadInput
from pplleak.posterior import fit
from pplleak.priors import _principal, mixture
from pplleak.priors._principal import Dense, Reflections
from pplleak.priors.gaussian import FittedGaussian, fit_gaussian
from pplleak.priors.ppca import fit_ppca

SHAPE = (3, 5, 4)


def images(count: int = 20) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(count, *SHAPE, dtype=torch.float64)


@pytest.fixture()
def lean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of more than 10 pixels are large."""
    monkeypatch.setattr(_principal, "DENSE", 10)
    fit_gaussian.cache_clear()
    fit_ppca.cache_clear()


def dense(x: Tensor, floor: float = 0.02) -> torch.distributions.MultivariateNormal:
    flat = x.flatten(1)
    covariance = torch.cov(flat.mT, correction=0) + floor**2 * torch.eye(flat.shape[1], dtype=flat.dtype)
    return torch.distributions.MultivariateNormal(flat.mean(0), covariance)


@pytest.mark.usefixtures("lean")
def test_a_gaussian_of_few_images_is_the_dense_one_to_the_last_digit() -> None:
    x = images()
    prior, reference = fit_gaussian(x), dense(x)
    assert isinstance(prior.root, Reflections) and prior.root.reflectors.shape == (60, 19)
    held = torch.rand(5, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(held), reference.log_prob(held.flatten(1)), rtol=1e-9, atol=1e-7)
    columns = (prior.decode(torch.eye(60, dtype=torch.float64)).flatten(1) - prior.mean).mT
    torch.testing.assert_close(columns @ columns.mT, reference.covariance_matrix, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(prior.decode(prior.encode(held)), held, rtol=1e-9, atol=1e-11)
    assert bool((prior.widths.diff() >= -1e-12).all())  # the leading components come last
    wrong = dense(x, floor=0.021)
    assert float((prior.log_prob(held) - wrong.log_prob(held.flatten(1))).abs().min()) > 1


def test_few_images_are_kept_by_their_directions_and_many_by_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_principal, "SMALL", 10)
    monkeypatch.setattr(_principal, "EIGHTH", 2)
    fit_gaussian.cache_clear()
    assert isinstance(fit_gaussian(images(31)).root, Dense)
    few = fit_gaussian(x := images(30))
    assert isinstance(few.root, Reflections)
    held = torch.rand(5, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(few.log_prob(held), dense(x).log_prob(held.flatten(1)), rtol=1e-9, atol=1e-7)


@pytest.mark.usefixtures("lean")
def test_directions_that_are_left_out_share_what_is_left_of_the_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_principal, "ENTRIES", 60 * 7)
    monkeypatch.setattr(_principal, "LOOKED_AT", 20)
    x = images(40)[::2]
    prior = fit_gaussian(x)
    assert isinstance(prior.root, Reflections) and prior.root.reflectors.shape == (60, 7)
    covariance = dense(x).covariance_matrix
    assert float(prior.widths.square().sum()) == pytest.approx(float(covariance.trace()), rel=1e-9)
    best = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(prior.widths[-7:].square(), best[-7:], rtol=1e-9, atol=0)


@pytest.mark.usefixtures("lean")
def test_ppca_of_large_images_is_that_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images()
    large = fit_ppca(x, rank=5)
    monkeypatch.setattr(_principal, "DENSE", 4096)
    fit_ppca.cache_clear()
    torch.testing.assert_close(large.log_prob(x), fit_ppca(x, rank=5).log_prob(x), rtol=1e-9, atol=1e-8)


@pytest.mark.usefixtures("lean")
def test_a_mixture_of_large_images_comes_back_from_its_tensors() -> None:
    x = images()
    fitted = mixture.fit(x, rank=3, components=2)
    kept = fitted.tensors()
    assert "base.factor" not in kept
    back = mixture.restore(kept, SHAPE, torch.float64)
    torch.testing.assert_close(back.log_prob(x), fitted.log_prob(x), rtol=1e-9, atol=1e-9)
    for name, broken in {
        "base.widths": -kept["base.widths"],
        "base.reflectors": 0 * kept["base.reflectors"],
        "base.mean": kept["base.mean"][1:],
    }.items():
        with pytest.raises(BadInput, match="its Gaussian"):
            mixture.restore({**kept, name: broken}, SHAPE, torch.float64)


@pytest.mark.usefixtures("lean")
def test_images_that_are_all_the_same_have_the_floor_everywhere() -> None:
    prior = fit_gaussian(torch.full((4, *SHAPE), 0.5, dtype=torch.float64))
    torch.testing.assert_close(prior.widths, torch.full((60,), 0.02, dtype=torch.float64))
    assert float(prior.draw(500).std()) == pytest.approx(0.02, rel=0.05)


def test_a_hundred_colour_images_of_64_by_64_take_no_matrix_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 200 * 2**20)  # 12288² numbers are 1.2 GB
    x = torch.rand(100, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prior = fit_gaussian(x, dtype=torch.float32)
    assert isinstance(prior, FittedGaussian) and prior.rank == 12288
    drawn = prior.draw(3)
    assert drawn.shape == (3, 3, 64, 64)
    torch.testing.assert_close(prior.decode(prior.encode(drawn).float()), drawn, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    with pytest.raises(BadInput, match="a Gaussian of 100 images of 12288 pixels takes about"):
        fit_gaussian(x.clone(), dtype=torch.float32)


def test_the_distance_to_the_public_images_is_mahalanobis(monkeypatch: pytest.MonkeyPatch) -> None:
    x, at = images(40), torch.rand(1, *SHAPE, dtype=torch.float64)
    covariance = dense(x[::2]).covariance_matrix

    def distance(of: Tensor) -> float:
        centred = of.flatten(1) - x[::2].flatten(1).mean(0)
        return float((centred @ torch.linalg.inv(covariance) * centred).sum(1).max())

    class Seen:
        public, mode = x, at.numpy()

    found = fit._stretch(Seen, Seen)  # type: ignore[arg-type]
    assert found["prior_stretch"] == pytest.approx(distance(at) / distance(x[1::2]), rel=1e-6)
    assert math.isfinite(found["prior_stretch"])
