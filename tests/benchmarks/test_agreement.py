"""`benchmarks/agreement.py`: routes to one posterior agree, and one that is off by little is rejected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import benchmark

DIM, CHAINS, DRAWS = 3, 40, 100


@pytest.fixture(scope="module")
def agreement() -> Any:
    return benchmark("agreement")


def normal(seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((CHAINS, DRAWS, DIM)) + shift


def target(z: torch.Tensor) -> torch.Tensor:
    """Normal(0, I), up to a constant."""
    return -0.5 * z.square().sum(-1)


def test_three_routes_to_a_normal_agree(agreement: Any) -> None:
    wide = 1.2 * normal(1)
    log_weights = (-0.5 * wide**2 + 0.5 * (wide / 1.2) ** 2).sum(-1).reshape(-1)
    routes = [
        agreement.of_chains(normal(2)),
        agreement.weighted_chains(wide, log_weights),
        agreement.student(wide, target, 4000, seed=3, dtype=torch.float64),
    ]
    for route in routes:
        exact = np.array([0.0] * DIM + [1.0] * DIM)
        assert np.abs(route.mean - exact).max() < 4 * route.se.max()
        assert route.se.max() < 0.05
        for other in routes:
            scores = agreement.compare(route, other)
            assert scores["max_score"] < scores["limit"]


@pytest.mark.parametrize("shift", [0.1, -0.1])
def test_a_route_whose_mean_is_a_tenth_of_a_standard_deviation_off_is_rejected(agreement: Any, shift: float) -> None:
    scores = agreement.compare(agreement.of_chains(normal(2)), agreement.of_chains(normal(4, shift)))
    assert scores["max_score"] > scores["limit"]


def test_standard_errors_are_those_of_repetition(agreement: Any) -> None:
    """200 runs of twenty chains each: the standard deviation of what they give is what each of them claims."""
    means, errors = [], []
    for seed in range(200):
        z = 1.2 * np.random.default_rng(seed).standard_normal((20, 10, DIM))
        log_weights = (-0.5 * z**2 + 0.5 * (z / 1.2) ** 2).sum(-1).reshape(-1)
        found = agreement.weighted_chains(z, log_weights)
        means.append(found.mean)
        errors.append(found.se)
    ratio = np.sqrt(np.mean(np.square(errors), 0)) / np.std(means, 0)
    assert np.abs(ratio - 1).max() < 0.25  # ± .05 for the standard deviation of 200, and as much of the jackknife
