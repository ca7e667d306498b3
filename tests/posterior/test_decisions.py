"""Decisions on mixtures where the best one is known, and the losses that they expect against exact ones."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import LIMIT
from scipy import stats

from pplleak.errors import BadInput
from pplleak.posterior import decisions

N = 8000
BROAD, SPIKE = (0.6, 0.0, 1.0), (0.4, 5.0, 0.05)  # weight, centre, sd


def mixture(count: int = N, seed: int = 0) -> np.ndarray:
    """Draws (count, 1, 1) of a broad hill that holds more in all, and a spike that holds more in a small ball."""
    generator = np.random.default_rng(seed)
    spiked = generator.random(count) < SPIKE[0]
    noise = generator.standard_normal(count)
    return np.where(spiked, SPIKE[1] + SPIKE[2] * noise, BROAD[1] + BROAD[2] * noise)[:, None, None]


def mass(centre: float, delta: float) -> float:
    """The exact mass of [centre − δ, centre + δ]."""
    return sum(w * float(np.diff(stats.norm.cdf([centre - delta, centre + delta], m, s))[0]) for w, m, s in
               (BROAD, SPIKE))  # fmt: skip


MODE = np.array([[SPIKE[1]]])


@pytest.mark.parametrize(("delta", "where"), [(0.5, SPIKE[1]), (2.0, BROAD[1])])
def test_the_ball_holds_the_most_mass_that_any_ball_of_its_radius_does(delta: float, where: float) -> None:
    made = decisions.decide(mixture(), MODE, delta)
    best = max(mass(c, delta) for c in np.linspace(-3, 7, 2001))
    assert abs(made["ball"].x.item() - where) < 0.2 + delta / 2
    exact = mass(made["ball"].x.item(), delta)
    assert exact > best - 0.01
    assert max(mass(made[n].x.item(), delta) for n in ("mean", "medoid")) < best - 0.05
    if delta == 2.0:
        assert mass(SPIKE[1], delta) < best - 0.05, "the mode is as good here: the test does not tell them apart"


def test_expected_losses_are_the_exact_ones_and_those_of_a_narrower_posterior_are_not() -> None:
    delta, scored = 2.0, N // 4
    mean = BROAD[0] * BROAD[1] + SPIKE[0] * SPIKE[1]
    second = sum(w * (s**2 + m**2) for w, m, s in (BROAD, SPIKE))

    def misses(draws: np.ndarray) -> float:
        made, worst = decisions.decide(draws, MODE, delta), 0.0
        for decision in made.values():
            at = decision.x.item()
            square, miss = second - 2 * at * mean + at**2, 1 - mass(at, delta)
            spread = np.var((draws - at) ** 2)
            worst = max(
                worst,
                abs(decision.square.item() - square) / np.sqrt(spread / scored),
                abs(decision.miss.item() - miss) / np.sqrt(miss * (1 - miss) / scored),
            )
        return worst

    assert misses(mixture()) < LIMIT
    assert misses(mean + (mixture() - mean) / 2) > LIMIT


def test_each_decision_has_the_least_loss_of_its_own_kind() -> None:
    made = decisions.decide(mixture(), MODE, 2.0)
    assert min(made.values(), key=lambda d: d.square.item()).name == "mean"
    assert min(made.values(), key=lambda d: d.miss.item()).name == "ball"


def test_mass_is_estimated_on_draws_that_did_not_choose_the_centre() -> None:
    """In 20 dimensions a small ball around the best of few draws seems to hold much more than it does."""
    generator = np.random.default_rng(1)
    delta, few = 3.2, 40
    exact, honest, flattered = [], [], []
    for _ in range(60):
        draws = generator.standard_normal((few, 1, 20))
        made = decisions.decide(draws, np.zeros((1, 20)), delta)["ball"]
        exact.append(stats.ncx2.cdf(delta**2, 20, float((made.x**2).sum())))
        honest.append(1 - made.miss.item())
        parts = decisions.split(draws)
        moved = decisions.mean_shift(parts.propose[:, 0], decisions.medoid(parts.propose)[0], delta)
        flattered.append(
            (
                np.mean(((parts.propose[:, 0] - moved) ** 2).sum(1) <= delta**2),
                stats.ncx2.cdf(delta**2, 20, (moved**2).sum()),
            )
        )

    def bias(found: np.ndarray, true: np.ndarray) -> float:
        gap = found - true
        return float(gap.mean() / (gap.std() / np.sqrt(len(gap))))

    assert abs(bias(np.array(honest), np.array(exact))) < LIMIT
    assert bias(*np.array(flattered).T) > LIMIT, "the draws that chose the centre do not flatter it: no power"


def test_mean_shift_ends_where_the_draws_around_it_have_their_mean() -> None:
    draws = mixture()[:, 0]
    for start in (-1.5, 2.0, 4.0):
        end = decisions.mean_shift(draws, np.array([start]), 1.5)
        inside = np.abs(draws - end)[:, 0] <= 1.5
        assert inside.any() and np.allclose(draws[inside].mean(0), end)
    assert decisions.mean_shift(draws, np.array([40.0]), 1.0) == 40.0


def test_a_ball_that_holds_no_draw_is_put_at_the_mode() -> None:
    draws = np.random.default_rng(0).standard_normal((200, 1, 30))
    mode = np.full((1, 30), 0.1)
    assert np.array_equal(decisions.decide(draws, mode, 1e-3)["ball"].x, mode)


def test_every_example_of_a_batch_has_its_own_ball() -> None:
    draws = np.concatenate([mixture(seed=0), 10 - mixture(seed=1)], axis=1)
    mode = np.array([[SPIKE[1]], [10 - SPIKE[1]]])
    together = decisions.decide(draws, mode, 2.0)["ball"]
    assert together.x.shape == (2, 1) and together.miss.shape == (2,)
    alone = decisions.decide(draws[:, 1:], mode[1:], 2.0)["ball"]
    assert abs(together.x[1].item() - alone.x[0].item()) < 0.5 and abs(together.x[1].item() - 10) < 1
    few = np.random.default_rng(2).standard_normal((400, 2, 3))
    medoid = decisions.medoid(few)
    for b in range(2):
        assert np.array_equal(medoid[b], decisions.medoid(few[:, b : b + 1])[0])
    assert not any(np.array_equal(medoid, draw) for draw in few), "the medoid of a batch is one draw of all of it"


def test_too_few_draws_and_an_empty_ball_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 4 posterior draws, not 3"):
        decisions.decide(mixture(3), MODE, 1.0)
    with pytest.raises(BadInput, match="delta must be a positive number"):
        decisions.decide(mixture(8), MODE, 0.0)
