"""What billiard's short trials find: the sharpness of its gates, and how many steps a trajectory takes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from billiards import DIM, NETWORKS, aimed, cheaply, convolutional, normal

from pplleak.density.kinks import billiard as kernel
from pplleak.density.kinks import tuning
from pplleak.density.kinks.tuning import STEPS, Trial
from pplleak.density.kinks.walls import Field

WALLS = 5


@pytest.fixture(scope="module")
def cheap() -> Field:
    """A field whose ΔV is that of the late layers: a wall costs one force."""
    return cheaply(aimed(convolutional))


def test_the_best_sharpness_wins_by_effective_draws_a_force(cheap: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    field, steps = aimed(NETWORKS["two dense"]), STEPS[0]
    state = kernel.place(field, normal(4, DIM, seed=20))
    seen: list[float] = []

    def trajectory(field, state, size, n):  # type: ignore[no-untyped-def]
        assert n == steps
        seen.append(beta := field.gates.beta)
        acceptance = torch.full((4,), {50.0: 0.2, 200.0: 0.7, 800.0: 0.9}[beta])
        return state, SimpleNamespace(acceptance=acceptance), kernel.Walk(torch.full((4,), WALLS), acceptance)

    monkeypatch.setattr(tuning, "step", trajectory)
    rivals = [Trial(tuning.sharpened(field, beta)) for beta in (800.0, 50.0, 200.0)]
    best, _ = tuning.contest(rivals, state, 10)
    assert seen == [800, 50, 200, 800, 50, 200, 800, 200, 800, 200]  # twice all, then the better two
    assert best.field.gates.beta == 800
    assert best.worth == pytest.approx(0.9 / 1.1 / (steps + 1.7 * WALLS), rel=1e-5)  # with ΔV of all layers
    assert Trial(cheap, [steps], [0.9], [WALLS]).worth == pytest.approx(0.9 / 1.1 / (steps + WALLS), rel=1e-5)
    none, _ = tuning.contest([Trial(field), Trial(field)], state, 0)
    assert none.field is field


def acceptance(n: np.ndarray, mu: float, gamma: float) -> np.ndarray:
    """a(n) where the energy errors of n steps are N(μ, 2μ), μ at the first of STEPS."""
    return np.array([math.erfc(math.sqrt(mu * (k / STEPS[0]) ** -gamma) / 2) for k in n])


@pytest.mark.parametrize(("mu", "gamma"), [(0.25, 0.0), (0.7, 1.5), (0.3, 4.0), (2.0, 1.5)])
def test_the_number_of_steps_is_nearly_the_best_one_and_better_than_the_best_trials(
    cheap: Field, mu: float, gamma: float
) -> None:
    """Ten turns of four chains; wrong twin: the candidate whose own trials were best, which throws more away."""
    rng, walls, chains, turns = np.random.default_rng(5), 15.0, 4, 10
    n = np.arange(min(STEPS), max(STEPS) + 1)
    a = acceptance(n, mu, gamma)
    worth = dict(zip(n.tolist(), a / (2 - a) / (n + walls), strict=True))
    found, naive = [], []
    for _ in range(40):
        error = {k: mu * (k / STEPS[0]) ** -gamma for k in STEPS}
        draws = {k: np.exp(-rng.normal(e, math.sqrt(2 * e), (turns, chains)).clip(0)).mean(1) for k, e in error.items()}
        order = [(k, t) for t in range(turns) for k in STEPS]
        trial = Trial(cheap, [k for k, _ in order], [float(draws[k][t]) for k, t in order], [walls] * len(order))
        found.append(worth[tuning.paced(trial, chains)] / max(worth.values()))
        means = {k: draws[k].mean() for k in STEPS}
        naive.append(worth[max(STEPS, key=lambda k: means[k] / (2 - means[k]) / (k + walls))] / max(worth.values()))
    assert np.mean(found) > 0.95
    assert np.mean(found) > np.mean(naive)


def test_the_number_of_steps_stays_between_those_tried(cheap: Field) -> None:
    hopeless = Trial(cheap, [8, 16, 32], [0.0, 0.0, 0.1], [WALLS] * 3)
    perfect = Trial(cheap, [8, 16, 32], [1.0, 1.0, 1.0], [WALLS] * 3)
    assert tuning.paced(perfect, 64) == 8
    assert tuning.paced(hopeless, 64) == 32
    assert tuning.paced(Trial(cheap, [16], [0.5], [WALLS]), 4) == 16
