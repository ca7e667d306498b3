"""Scores against their definitions, written out or found by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from pplleak.posterior import metrics

RNG = np.random.default_rng


@pytest.mark.parametrize(("error", "decibels"), [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0)])
def test_psnr_of_a_constant_error_is_its_logarithm(error: float, decibels: float) -> None:
    truth = np.zeros((2, 1, 3, 3))
    np.testing.assert_allclose(metrics.psnr(truth + error, truth), [decibels, decibels], atol=1e-9)


def test_psnr_scores_each_image_by_its_own_mean_squared_error() -> None:
    truth = RNG(0).random((3, 3, 5, 4)).astype(np.float32)
    x = RNG(1).random((3, 3, 5, 4)).astype(np.float32)
    expected = [-10 * math.log10(((a.astype(float) - b) ** 2).mean()) for a, b in zip(x, truth, strict=True)]
    np.testing.assert_allclose(metrics.psnr(x, truth), expected, rtol=1e-9)


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim])
def test_reconstructions_are_clipped_to_the_range_of_a_pixel(score) -> None:  # type: ignore[no-untyped-def]
    truth = RNG(0).random((1, 1, 8, 8))
    x = truth + RNG(1).normal(size=truth.shape)
    np.testing.assert_array_equal(score(x, truth), score(np.clip(x, 0, 1), truth))
    assert score(x, truth) != score(x / 2, truth)


def test_an_exact_reconstruction_scores_a_finite_best() -> None:
    truth = RNG(0).random((2, 1, 8, 8))
    np.testing.assert_allclose(metrics.psnr(truth, truth), [120, 120])
    np.testing.assert_allclose(metrics.ssim(truth, truth), [1, 1])


@pytest.mark.parametrize("side", [3, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_of_one_window_is_its_equation(side: int, channels: int) -> None:
    """An image as large as the window has one: Wang et al. 2004, eq. 13, with sample covariances."""
    a, b = RNG(0).random((channels, side, side)), RNG(1).random((channels, side, side))
    c1, c2 = 0.01**2, 0.03**2
    expected = []
    for p, q in zip(a.reshape(channels, -1), b.reshape(channels, -1), strict=True):
        covariance = np.cov(p, q)
        luminance = (2 * p.mean() * q.mean() + c1) / (p.mean() ** 2 + q.mean() ** 2 + c1)
        expected.append(luminance * (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2))
    np.testing.assert_allclose(metrics.ssim(a[None], b[None]), [np.mean(expected)], rtol=1e-9)


@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (2, 1, 8, 2), (2, 10)])
def test_ssim_of_what_is_no_image_is_nan(shape: tuple[int, ...]) -> None:
    scores = metrics.ssim(np.zeros(shape), np.zeros(shape))
    assert scores.shape == (2,)
    assert np.isnan(scores).all()


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 32, 32), (1, 1, 5, 12), (3, 2, 28, 9)])
def test_ssim_is_scikit_images(shape: tuple[int, ...]) -> None:
    truth = RNG(0).random(shape)
    x = np.clip(truth + 0.3 * RNG(1).normal(size=shape), 0, 1)
    window = min(7, min(shape[-2:]) - (min(shape[-2:]) + 1) % 2)

    def expected(**other: bool) -> list[float]:
        return [
            structural_similarity(a, b, win_size=window, data_range=1.0, channel_axis=0, **other)
            for a, b in zip(x, truth, strict=True)
        ]

    np.testing.assert_allclose(metrics.ssim(x, truth), expected(), rtol=1e-10)
    assert not np.allclose(metrics.ssim(x, truth), expected(use_sample_covariance=False), rtol=1e-6)  # its wrong twin


@pytest.mark.parametrize("side", [4, 6, 8])
def test_ssim_takes_the_largest_odd_window_that_fits(side: int) -> None:
    truth = RNG(0).random((1, 1, side, side))
    assert np.isfinite(metrics.ssim(truth / 2, truth)).all()


def test_match_finds_a_shuffled_batch_again() -> None:
    truth = RNG(0).random((5, 1, 3, 3))
    shuffled = RNG(1).permutation(5)
    assert not np.array_equal(shuffled, np.arange(5))
    noisy = truth[shuffled] + 0.01 * RNG(2).normal(size=truth.shape)
    order = metrics.match(noisy, truth)
    np.testing.assert_array_equal(shuffled[order], np.arange(5))


@pytest.mark.parametrize("seed", range(5))
def test_match_minimises_the_squared_error_over_all_permutations(seed: int) -> None:
    x, truth = RNG(seed).random((4, 1, 2, 2)), RNG(seed + 100).random((4, 1, 2, 2))

    def cost(order: np.ndarray) -> float:
        return float(((x[order] - truth) ** 2).sum())

    costs = [cost(np.array(p)) for p in itertools.permutations(range(4))]
    assert cost(metrics.match(x, truth)) == pytest.approx(min(costs))
    assert min(costs) < max(costs)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_the_right_posterior_is_its_level_and_that_of_a_wrong_one_is_not(level: float) -> None:
    pixels = 4000
    truth = RNG(0).normal(size=(1, pixels))
    draws = RNG(1).normal(size=(500, 1, pixels))
    error = math.sqrt(level * (1 - level) / pixels)

    def calibrated(draws: np.ndarray) -> bool:
        return abs(metrics.coverage(draws, truth, level) - level) < 5 * error

    assert calibrated(draws)
    assert not calibrated(draws / 2)
    assert not calibrated(draws + 0.5)


def test_coverage_counts_pixels_of_every_example() -> None:
    draws = np.linspace(0, 1, 101)[:, None, None] * np.ones((1, 2, 3))
    truth = np.array([[0.5, 0.06, 0.04], [0.94, 0.96, 2.0]])
    assert metrics.coverage(draws, truth, 0.9) == pytest.approx(3 / 6)
