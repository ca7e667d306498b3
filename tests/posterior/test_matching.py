"""The examples of a batch have no order: draws are compared after they are put into one."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import observe, tiny

from pplleak.density import build
from pplleak.federation.observation import Observation
from pplleak.models import logistic
from pplleak.posterior import Posterior, collect, diagnostics


def draws(modes: Any, chains: int = 4, count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Chains around modes (chains, example, pixels), and labels that say which example is which."""
    noise = 0.1 * np.random.default_rng(seed).normal(size=(chains, count, *modes.shape[1:]))
    return modes[:, None] + noise, np.zeros(noise.shape[:3], dtype=int)


MODE = np.random.default_rng(1).random((3, 1, 2, 2))
ORDERS = list(itertools.permutations(range(3)))
STUCK = np.stack([MODE[list(ORDERS[k])] for k in (0, 3, 4, 5)])  # every chain in another permutation of one mode


def worst(x: np.ndarray) -> float:
    return diagnostics.rhat(x.reshape(*x.shape[:2], -1))


def test_chains_in_permutations_of_one_mode_agree_once_they_are_matched() -> None:
    x, y = draws(STUCK)
    matched, _ = diagnostics.relabelled(x, y, MODE)
    assert worst(x) > 1.5
    assert worst(matched) < 1.01
    np.testing.assert_allclose(matched.mean((0, 1)), MODE, atol=5 * 0.1 / np.sqrt(1200))
    np.testing.assert_allclose(matched.std((0, 1)), 0.1, rtol=0.15)
    assert x.std((0, 1)).min() > 0.12  # what was not matched mixes the examples up


def test_two_real_modes_still_disagree() -> None:
    other = MODE + np.array([0.3, 0.0, 0.0])[:, None, None, None]  # another first example
    x, y = draws(np.concatenate([STUCK[:2], [other[list(ORDERS[k])] for k in (2, 5)]]))
    assert worst(diagnostics.relabelled(x, y, MODE)[0]) > 1.05


def test_every_draw_is_in_its_best_order_and_labels_move_along() -> None:
    r = np.random.default_rng(2)
    x, y = r.random((2, 5, 3, 1, 2, 2)), r.integers(0, 10, (2, 5, 3))
    reference = r.random((3, 1, 2, 2))
    matched, labels = diagnostics.relabelled(x, y, reference)
    for c, d in itertools.product(range(2), range(5)):
        costs = [((x[c, d][list(o)] - reference) ** 2).sum() for o in ORDERS]
        best = list(ORDERS[int(np.argmin(costs))])
        np.testing.assert_array_equal(matched[c, d], x[c, d][best])
        np.testing.assert_array_equal(labels[c, d], y[c, d][best])


def test_examples_of_different_known_labels_keep_their_places() -> None:
    x, y = draws(np.stack([MODE[[1, 0, 2]]] * 4))
    y[...] = [5, 5, 7]
    swapped, _ = diagnostics.relabelled(x, y, MODE, np.array([5, 5, 7]))
    np.testing.assert_array_equal(swapped, x[:, :, [1, 0, 2]])
    kept, labels = diagnostics.relabelled(x, y, MODE, np.array([5, 7, 9]))
    np.testing.assert_array_equal(kept, x)
    np.testing.assert_array_equal(labels, y)


@pytest.mark.parametrize(("labels", "moves"), [([1, 1], True), (None, True), ([0, 1], False)])
def test_an_inference_s_draws_are_matched_where_nothing_tells_examples_apart(labels: Any, moves: bool) -> None:
    client = tiny()
    g = observe(client, 0.3, size=2)
    y = None if labels is None else torch.tensor(labels)
    observed = Observation(g.g, 2, y)
    density = build(partial(logistic.model, sigma=0.3), client, observed)
    mode = torch.linspace(0, 1, density.dim, dtype=torch.float64)
    other = mode.reshape(2, -1).flip(0).flatten()
    z = torch.stack([mode, other])[:, None] + 0.01 * torch.randn(2, 50, density.dim, dtype=torch.float64)
    found: Posterior = collect(density, z, mode=mode, kind="sampler")
    assert found.rhat_max is not None
    assert (found.rhat_max < 1.1) is moves
    raw = z.reshape(2, 50, 2, 1, 2, 2).numpy()
    np.testing.assert_allclose(np.sort(found.x, 2), np.sort(raw, 2))
