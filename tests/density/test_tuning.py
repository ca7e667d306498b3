"""What billiard's short trials find: the sharpness of its gates, and how many steps a trajectory takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from billiards import DIM, NETWORKS, aimed, cheaply, convolutional, normal

from pplleak.density.kinks import billiard as kernel
from pplleak.density.kinks import tuning
from pplleak.density.kinks.tuning import STEPS, Trial
from pplleak.density.kinks.walls import Field
from pplleak.progress import silent

WALLS = 5


@pytest.fixture(scope="module")
def cheap() -> Field:
    """A field whose ΔV is that of the late layers: a wall costs one force."""
    return cheaply(aimed(convolutional))


def answering(seen: list[tuple[float, int]], accepts: Callable[[float, int], float]) -> Callable[..., Any]:
    """In the place of a trajectory: writes down β and the number of steps, and is accepted as `accepts` has it."""

    def trajectory(field: Field, state: kernel.State, size: float, n: int) -> tuple[Any, Any, kernel.Walk]:
        seen.append((field.gates.beta, n))
        rows = torch.ones(len(state.w))
        acceptance = accepts(field.gates.beta, n) * rows
        return state, SimpleNamespace(acceptance=acceptance), kernel.Walk(WALLS * rows, rows < 0, acceptance)

    return trajectory


def test_the_best_sharpness_wins_by_effective_draws_a_force(cheap: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    field, steps = aimed(NETWORKS["two dense"]), STEPS[0]
    state = kernel.place(field, normal(4, DIM, seed=20))
    seen: list[tuple[float, int]] = []
    monkeypatch.setattr(tuning, "step", answering(seen, lambda beta, n: {50.0: 0.2, 200.0: 0.7, 800.0: 0.9}[beta]))
    rivals = [Trial(tuning.sharpened(field, beta)) for beta in (800.0, 50.0, 200.0)]
    none, _ = tuning.contest(rivals, state, 0)
    assert none is rivals[0] and not seen
    best, _ = tuning.contest(rivals, state, 10)
    assert [b for b, _ in seen] == [800, 50, 200, 800, 50, 200, 800, 200, 800, 200]  # twice all, then the better two
    assert {n for _, n in seen} == {steps}
    assert best is rivals[0]
    assert best.worth == pytest.approx(0.9 / 1.1 / (steps + 1.7 * WALLS), rel=1e-5)  # with ΔV of all layers
    assert Trial(cheap, [steps], [0.9], [WALLS]).worth == pytest.approx(0.9 / 1.1 / (steps + WALLS), rel=1e-5)


def test_trials_find_beta_first_and_then_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    field = aimed(NETWORKS["two dense"])
    state = kernel.place(field, normal(4, DIM, seed=20))
    seen: list[tuple[float, int]] = []
    monkeypatch.setattr(tuning, "step", answering(seen, lambda beta, n: 0.9 if (beta, n) >= (200.0, 24) else 0.1))
    _, _, steps = tuning.trials(field, state, 12, (200.0,), silent)
    assert [n for _, n in seen] == [*STEPS] * 4 and steps > 24  # one β: all trials are for the steps
    seen.clear()
    tuning.trials(field, state, 24, (200.0, 50.0), silent)
    assert [n for _, n in seen[:6]] == [STEPS[0]] * 6 and [n for _, n in seen[6:]] == [*STEPS] * 6
    assert tuning.trials(field, state, 0, (200.0,), silent)[2] == STEPS[0]


# μ at the first of STEPS, γ, what is left of μ at any n, lost trajectories. The floor is not of the law
TRUTHS = [(0.25, 0.0, 0.0, 0.07), (0.1, 1.0, 0.0, 0.0), (0.7, 1.5, 0.0, 0.05), (2.5, 1.5, 0.0, 0.0),
          (0.3, 4.0, 0.0, 0.0), (0.3, 4.0, 0.1, 0.07)]  # fmt: skip
TURNS, CHAINS, MET = 10, 4, 15.0


def kept_worth(cheap: Field, truth: tuple[float, float, float, float]) -> dict[str, float]:
    """What share of the best number's worth is kept, the mean of 40 trials: by our choice, by the number whose own
    trials were best, and by always the same number."""
    mu, gamma, floor, lost = truth
    rng, n = np.random.default_rng(5), np.arange(min(STEPS), max(STEPS) + 1)
    error = {int(k): mu * (k / STEPS[0]) ** -gamma + floor for k in n}
    a = {k: (1 - lost) * math.erfc(math.sqrt(e) / 2) for k, e in error.items()}
    worth = {k: a[k] / (2 - a[k]) / (k + MET) for k in a}
    found: dict[str, list[float]] = {"ours": [], "naive": []}
    for _ in range(40):
        trial = Trial(cheap)
        for k in STEPS * TURNS:
            gone = rng.random(CHAINS) < lost
            draws = np.exp(-rng.normal(error[k], math.sqrt(2 * error[k]), CHAINS).clip(0)) * ~gone
            for seen, value in ((trial.steps, k), (trial.acceptance, draws.mean()), (trial.walls, MET),
                                (trial.lost, gone.mean())):  # fmt: skip
                seen.append(value)  # type: ignore[arg-type]
        means = {k: np.mean([v for v, m in zip(trial.acceptance, trial.steps, strict=True) if m == k]) for k in STEPS}
        found["ours"].append(worth[tuning.best_steps(trial, CHAINS)])
        found["naive"].append(worth[max(STEPS, key=lambda k: means[k] / (2 - means[k]) / (k + MET))])
    same = {f"always {k}": worth[k] for k in worth}
    return {name: float(np.mean(v)) / max(worth.values()) for name, v in {**found, **same}.items()}


def test_the_number_of_steps_is_nearly_the_best_one_whatever_the_truth(cheap: Field) -> None:
    """Wrong twins: the number whose own trials were best, and every number that is always taken."""
    kept = [kept_worth(cheap, truth) for truth in TRUTHS]
    worst = {name: min(k[name] for k in kept) for name in kept[0]}
    assert worst.pop("ours") > 0.93
    assert max(worst.values()) < 0.93
    assert np.mean([k["ours"] for k in kept]) > np.mean([k["naive"] for k in kept]) + 0.02


def test_the_number_of_steps_stays_between_the_fewest_and_the_most(cheap: Field) -> None:
    hopeless = Trial(cheap, [16, 8, 32], [0.0, 0.0, 0.1], [WALLS] * 3, [0.0] * 3)
    perfect = Trial(cheap, [16, 8, 32], [1.0, 1.0, 1.0], [WALLS] * 3, [0.0] * 3)
    lost = Trial(cheap, [16, 8, 32], [0.0, 0.0, 0.0], [WALLS] * 3, [1.0] * 3)
    assert tuning.best_steps(perfect, 64) == min(STEPS)
    assert tuning.best_steps(hopeless, 64) == max(STEPS)
    assert min(STEPS) <= tuning.best_steps(lost, 64) <= max(STEPS)


def test_dearer_walls_ask_for_more_steps(cheap: Field) -> None:
    """ΔV of all layers makes a trajectory dearer, whatever its steps: then more of them pay."""
    same = ([16, 8, 32] * 4, [0.6, 0.3, 0.85] * 4, [WALLS] * 12, [0.0] * 12)
    dear, cheaper = (tuning.best_steps(Trial(field, *same), 64) for field in (replace(cheap, late=None), cheap))
    assert min(STEPS) < cheaper < dear < max(STEPS)
