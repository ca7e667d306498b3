"""Priors: their densities are normalised, their draws follow them, and a fitted Gaussian is the fitted one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import LIMIT, assert_frequencies, assert_moments, chains_of, misfit
from torch import Tensor

from pplleak import priors
from pplleak.errors import BadInput

DRAWS = torch.Size([4000])


def correlated_images(count: int = 60) -> Tensor:
    """Images (count, 1, 2, 3) whose pixels go together, one of them constant."""
    images = torch.rand(count, 1, 2, 3, dtype=torch.float64)
    images[..., 1] = (images[..., 0] + images[..., 1]) / 2
    images[..., 0, 2] = 0.25
    return images


def test_uniform_draws_fill_the_box_and_have_its_density() -> None:
    prior = priors.uniform((1, 2, 2), 2)
    draws = prior.sample(DRAWS)
    assert draws.shape == (4000, 2, 1, 2, 2)
    assert_moments(chains_of(draws), torch.full((8,), 0.5), torch.full((8,), 12**-0.5))
    assert torch.equal(prior.log_prob(draws), torch.zeros(4000))
    outside = draws.clone()
    outside[:, 1, 0, 1, 1] += 1
    assert not bool(prior.support.check(outside).any())
    assert bool(prior.support.check(draws).all())


@pytest.mark.parametrize("batch", [1, 3])
def test_label_probabilities_sum_to_one_over_the_enumerated_support(batch: int) -> None:
    prior = priors.Labels(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), batch)
    support = prior.enumerate_support()
    assert sorted(map(tuple, support.tolist())) == sorted(itertools.product(range(3), repeat=batch))
    assert float(prior.log_prob(support).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_label_draws_have_their_probabilities_and_examples_are_independent() -> None:
    logits = torch.tensor([0.3, -1.0, 1.0], dtype=torch.float64)
    drawn = priors.Labels(logits, 2).sample(DRAWS)
    assert drawn.shape == (4000, 2)
    for example in range(2):
        assert_frequencies(drawn[:, example].reshape(4, -1).numpy(), logits.softmax(0))
    joint = (logits.softmax(0)[:, None] * logits.softmax(0)).flatten()
    assert_frequencies((3 * drawn[:, 0] + drawn[:, 1]).reshape(4, -1).numpy(), joint)


def test_labels_expand_to_one_vector_a_chain() -> None:
    prior = priors.Labels(torch.zeros(3, dtype=torch.float64), 2).expand(torch.Size([5]))
    assert prior.batch_shape == (5,)
    assert prior.sample().shape == (5, 2)
    assert prior.log_prob(torch.zeros(2, dtype=torch.long)).shape == (5,)
    assert prior.enumerate_support().shape == (9, 5, 2)
    assert prior.enumerate_support(expand=False).shape == (9, 1, 2)
    assert prior.log_prob(prior.enumerate_support(expand=False)).shape == (9, 5)


def test_labels_out_of_range_are_outside_the_support() -> None:
    prior = priors.Labels(torch.zeros(3), 2)
    assert bool(prior.support.check(torch.tensor([0, 2])))
    assert not bool(prior.support.check(torch.tensor([0, 3])))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_label_counts_stand_for_all_label_vectors(batch: int) -> None:
    prior = priors.Labels(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), batch)
    y, log_orders = prior.enumerate_counts()
    found: dict[tuple[int, ...], int] = {}
    for labels in itertools.product(range(3), repeat=batch):
        found[tuple(sorted(labels))] = found.get(tuple(sorted(labels)), 0) + 1
    assert {tuple(v): round(math.exp(w)) for v, w in zip(y.tolist(), log_orders.tolist(), strict=True)} == found
    assert float((log_orders + prior.log_prob(y)).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_too_many_label_counts_are_refused_with_what_to_do() -> None:
    assert len(priors.Labels(torch.zeros(10), 6).enumerate_counts()[0]) == 5005
    with pytest.raises(BadInput, match=r"11440 label counts, .*--labels recovered"):
        priors.Labels(torch.zeros(10), 7).enumerate_counts()


def test_too_many_label_vectors_are_refused_with_what_to_do() -> None:
    largest = priors.Labels(torch.zeros(10), 4)
    assert len(largest.enumerate_support()) == 10_000
    with pytest.raises(BadInput, match="--labels known"):
        priors.Labels(torch.zeros(10), 5).enumerate_support()


@pytest.mark.parametrize("floor", [0.02, 0.3])
def test_the_fitted_gaussian_has_the_images_mean_and_covariance_plus_its_floor(floor: float) -> None:
    images = correlated_images()
    fitted = priors.fit_gaussian(images, floor=floor)
    flat = images.flatten(1).numpy()
    covariance = np.cov(flat.T, bias=True) + floor**2 * np.eye(6)
    np.testing.assert_allclose(fitted.mean.numpy(), flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose((fitted.factor @ fitted.factor.mT).numpy(), covariance, rtol=1e-9, atol=1e-12)
    assert fitted.rank == 6
    assert float(torch.linalg.svdvals(fitted.factor).min()) == pytest.approx(floor, rel=1e-6)  # the constant pixel's


def test_decoded_coefficients_follow_the_fitted_gaussian() -> None:
    images = correlated_images()
    fitted = priors.fit_gaussian(images, floor=0.1)
    x = fitted.decode(fitted.coefficients(2).sample(DRAWS))
    assert x.shape == (4000, 2, 1, 2, 3)
    covariance = fitted.factor @ fitted.factor.mT
    for example in range(2):
        draws = x[:, example].flatten(1)
        assert_moments(chains_of(draws), fitted.mean, covariance.diagonal().sqrt())
        centred = draws - fitted.mean
        products = chains_of((centred[:, :, None] * centred[:, None, :]).flatten(1))
        assert misfit(products, covariance) <= LIMIT
        assert misfit(products, covariance.diagonal().diag()) > LIMIT  # pixels forgotten to be correlated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fitted_gaussian_has_the_clients_precision(dtype: torch.dtype) -> None:
    fitted = priors.fit_gaussian(correlated_images(), dtype=dtype)
    assert {fitted.mean.dtype, fitted.factor.dtype, fitted.coefficients().sample().dtype} == {dtype}


def test_one_image_is_too_few_to_fit() -> None:
    with pytest.raises(BadInput, match="at least 2 images"):
        priors.fit_gaussian(torch.rand(1, 1, 2, 2))
