"""The exact test of uniformity: its level, its band beside ArviZ's simulated one, and what it rejects."""

from __future__ import annotations

import numpy as np
import pytest
from arviz_stats.ecdf_utils import ecdf_pit
from conftest import LIMIT

from pplleak.studies.calibration import uniformity

COLUMNS = 4000


def uniform(count: int, columns: int = COLUMNS) -> np.ndarray:
    return np.random.default_rng(0).random((count, columns))


@pytest.mark.parametrize("count", [1, 3, 20, 130])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.01])
def test_a_p_value_below_alpha_comes_as_often_as_it_says(count: int, alpha: float) -> None:
    p = uniformity.p_values(uniform(count))
    attained = p[p <= alpha].max() if (p <= alpha).any() else 0.0  # counts are discrete: so are the p-values
    assert abs((p <= alpha).mean() - attained) <= LIMIT * np.sqrt(alpha / COLUMNS)
    if count >= 20:
        assert attained > 0.8 * alpha, "the test has no power to lose"


def test_the_p_value_of_three_numbers_is_that_of_counting() -> None:
    """By brute force: t = 1/3 and 2/3, counts trinomial."""
    u = np.array([[0.1], [0.2], [0.3]])  # all three below 1/3
    assert uniformity.p_values(u)[0] == pytest.approx(2 / 27)  # as far out: all below 1/3, or all above 2/3


@pytest.mark.parametrize("count", [25, 100])
def test_the_band_is_the_one_that_arviz_simulates(count: int) -> None:
    t, low, high = uniformity.band(count)
    there, _, low_there, high_there = ecdf_pit(uniform(count)[:, 0], 0.95, 4000, rng=np.random.default_rng(1))
    np.testing.assert_allclose(t, there)
    assert max(np.abs(low - low_there).max(), np.abs(high - high_there).max()) <= 1.01 / count


def test_a_curve_leaves_the_band_where_its_p_value_is_below_its_level() -> None:
    u = uniform(40) ** np.linspace(0.7, 1.4, COLUMNS)
    _, low, high = uniformity.band(40, 0.95)
    curve = uniformity.counts(u) / 40
    outside = ((curve < low[1:-1]) | (curve > high[1:-1])).any(1)
    p = uniformity.p_values(u)
    assert (p[outside] <= 0.05).all() and p[~outside].min() > 0.045
    assert 0.1 < outside.mean() < 0.9


@pytest.mark.parametrize("twin", [lambda u: u**2, lambda u: 0.5 + 0.6 * (u - 0.5), lambda u: np.sqrt(u)])
def test_wrong_twins_of_uniform_numbers_are_rejected(twin) -> None:  # type: ignore[no-untyped-def]
    assert uniformity.p_values(twin(uniform(100, 50))).max() < 0.05
    assert np.median(uniformity.p_values(uniform(100, 50))) > 0.2
