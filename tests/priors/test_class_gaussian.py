"""A Gaussian a class: its fit, its density, against the obvious sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import LIMIT, assert_moments, chains_of, misfit, tiny
from torch import Tensor
from torch.distributions import MultivariateNormal

from pplleak import priors
from pplleak.errors import BadInput
from pplleak.priors.class_gaussian import ClassGaussian, fit_class_gaussian
from pplleak.settings import Named

SHAPE = (1, 2, 2)


def images(count: int = 90) -> tuple[Tensor, Tensor]:
    """Images of three classes, each with a mean and directions of its own; the third has fewer."""
    generator = torch.Generator().manual_seed(1)
    y = torch.cat([torch.arange(count - 20) % 2, torch.full((20,), 2)])
    roots = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    z = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    x = y.double()[:, None] + torch.einsum("npd,nd->np", roots[y], z)
    return x.reshape(count, *SHAPE), y


def covariances(prior: ClassGaussian) -> Tensor:
    return prior.factors @ prior.factors.mT


def test_the_fit_is_the_classes_own_moments_drawn_towards_what_they_share() -> None:
    x, y = images()
    prior = fit_class_gaussian(x, y, 3, floor=0.1, pooled=7.0)
    flat, eye = x.flatten(1), torch.eye(4, dtype=torch.float64)
    counts = [int((y == k).sum()) for k in range(3)]
    means = [(flat[y == k].sum(0) + flat.mean(0)) / (n + 1) for k, n in enumerate(counts)]
    scatters = [torch.stack([torch.outer(r - means[k], r - means[k]) for r in flat[y == k]]).sum(0) for k in range(3)]
    for k, n in enumerate(counts):
        torch.testing.assert_close(prior.means[k], means[k])
        expected = (scatters[k] + 7.0 * sum(scatters) / len(x)) / (n + 7.0) + 0.01 * eye
        torch.testing.assert_close(covariances(prior)[k], expected)
    shared = fit_class_gaussian(x, y, 4, pooled=1e12)
    torch.testing.assert_close(covariances(shared)[0], covariances(shared)[3], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(shared.means[3], flat.mean(0))  # a class that nobody has seen


def test_its_densities_are_those_of_torch_and_its_draws_have_them() -> None:
    prior = fit_class_gaussian(*images(), 3)
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    laws = [MultivariateNormal(m, c) for m, c in zip(prior.means, covariances(prior), strict=True)]
    each = torch.stack([law.log_prob(x.flatten(1)) for law in laws], 1)
    torch.testing.assert_close(prior.log_prob_each(x), each)
    torch.testing.assert_close(prior.log_prob(x), each.exp().mean(1).log())
    drawn = chains_of(prior.of_class(torch.full((4000,), 2)).decode(prior.coefficients(4000).sample()).flatten(1))
    assert_moments(drawn, laws[2].mean, laws[2].variance.sqrt())
    assert misfit(drawn, laws[1].mean, laws[1].variance.sqrt()) > LIMIT  # another class's are not these
    any_class = chains_of(prior.draw(4000).flatten(1))
    mean = prior.means.mean(0)
    spread = (covariances(prior).diagonal(0, 1, 2) + (prior.means - mean).square()).mean(0).sqrt()
    assert_moments(any_class, mean, spread)


def test_images_of_many_label_vectors_are_those_of_one_at_a_time() -> None:
    prior = fit_class_gaussian(*images(), 3)
    z = torch.randn(5, 2, 4, dtype=torch.float64)
    y = torch.cartesian_prod(torch.arange(3), torch.arange(3))[:, None]  # (9, 1, 2)
    together = prior.of_class(y).decode(z)
    assert together.shape == (9, 5, 2, *SHAPE)
    for k, labels in enumerate(y[:, 0]):
        for b, label in enumerate(labels):
            alone = prior.means[label] + z[:, b] @ prior.factors[label].mT
            torch.testing.assert_close(together[k, :, b].flatten(1), alone)


def test_what_it_cannot_be_fitted_to_is_one_line() -> None:
    x, y = images()
    unlabelled = torch.rand(9, *tiny().input_shape)
    refused: dict[str, Callable[[], object]] = {
        "have no labels": lambda: priors.make(Named("class_gaussian"), tiny(), unlabelled),
        "at most 4096 pixels": lambda: fit_class_gaussian(torch.rand(4, 1, 65, 65), y[:4], 2),
        "there is a label 7": lambda: fit_class_gaussian(x, y, 3).of_class(torch.tensor([7])),
        "at least 2 labelled images": lambda: fit_class_gaussian(x, y[:5], 3),
        "call of_class": lambda: fit_class_gaussian(x, y, 3).decode(torch.zeros(1, 4)),
    }
    for words, call in refused.items():
        with pytest.raises(BadInput, match=words):
            call()
