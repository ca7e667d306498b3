"""R-hat and effective sample sizes of many quantities at once are ArviZ's, one by one."""

from __future__ import annotations

import arviz
import numpy as np
import pytest
from scipy import stats

from pplleak.posterior import convergence


def chains_of(chains: int, draws: int) -> np.ndarray:
    """Autoregressive chains, quick and slow; with ties, with one that lies elsewhere, with one that never moves."""
    generator = np.random.default_rng(0)
    made = []
    for correlation in (-0.9, -0.3, 0.0, 0.5, 0.95, 0.999):
        x = generator.standard_normal((chains, draws, 8))
        for t in range(1, draws):
            x[:, t] += correlation * x[:, t - 1]
        made.append(x)
    values = np.concatenate(made, -1)
    values[..., 3] = np.round(values[..., 3])
    values[..., 5] += np.arange(chains)[:, None]
    values[..., 7] = 1.0
    return values


@pytest.mark.parametrize("block", [1, convergence.BLOCK])
@pytest.mark.parametrize(("chains", "draws"), [(2, 4), (2, 5), (2, 7), (3, 8), (1, 50), (4, 9), (8, 60), (16, 101)])
def test_every_quantity_has_the_numbers_that_arviz_gives_it(
    chains: int, draws: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "BLOCK", block)
    values = chains_of(chains, draws)
    found = convergence.measure(values[..., :10], values[..., 10:])
    with np.errstate(all="ignore"):
        expected = {
            "rhat": arviz.rhat(values) if chains > 1 else np.full(values.shape[-1], np.nan),
            "ess_bulk": arviz.ess(values, method="bulk"),
            "ess_tail": arviz.ess(values, method="tail", prob=convergence.TAILS),
        }
    for name, numbers in expected.items():
        np.testing.assert_allclose(getattr(found, name), numbers, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(("superchains", "each", "draws"), [(2, 1, 4), (2, 3, 9), (4, 4, 8), (3, 5, 50)])
def test_nested_rhat_is_arvizs(superchains: int, each: int, draws: int) -> None:
    values = chains_of(superchains * each, draws)
    found = convergence.measure(values, superchains=superchains).rhat
    groups = np.repeat(np.arange(superchains), each)
    with np.errstate(all="ignore"):
        expected = arviz.rhat_nested(values, superchain_ids=groups)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_nested_rhat_is_small_for_many_short_chains_and_sees_that_a_group_remembers_its_start() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal((512, 6, 2))
    for t in range(1, 6):  # six draws are two effective ones: a chain alone cannot tell where it is
        values[:, t] = 0.8 * values[:, t - 1] + 0.6 * values[:, t]
    values[..., 1] += 0.3 * np.repeat(generator.standard_normal(8), 64)[:, None]
    nested, plain = convergence.measure(values, superchains=8).rhat, convergence.measure(values).rhat
    assert nested[0] < 1.01 < 1.03 < nested[1]
    assert plain[0] > 1.2


def test_many_short_chains_are_worth_what_their_means_vary_by() -> None:
    generator, draws = np.random.default_rng(0), 6
    values = generator.standard_normal((4096, draws, 1))
    for t in range(1, draws):
        values[:, t] = 0.8 * values[:, t - 1] + 0.6 * values[:, t]
    lags = np.arange(1, draws)
    expected = 4096 * draws / (1 + 2 * ((1 - lags / draws) * 0.8**lags).sum())  # of the mean of a stationary chain
    error = np.sqrt(2 / 4096)  # of a variance, relative
    found = convergence.measure(values, superchains=16).ess_bulk[0]
    assert abs(found / expected - 1) < 5 * error
    assert abs(convergence.measure(values).ess_bulk[0] / expected - 1) > 10 * error  # wrong twin: lags of six draws


def test_chains_that_differ_in_width_alone_are_seen_and_a_nan_is_no_number() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal((4, 500, 3))
    values[0, :, 1] *= 10
    values[2, 100, 2] = np.nan
    found = convergence.measure(values)
    assert found.rhat[0] < 1.01 < 1.1 < found.rhat[1]
    assert all(np.isnan(getattr(found, name)[2]) for name in ("rhat", "ess_bulk", "ess_tail"))


def test_scores_are_of_scipys_ranks_with_ties_and_without() -> None:
    values = np.random.default_rng(0).integers(0, 40, (300, 5)).astype(np.float64)
    values[:, 0] = np.random.default_rng(1).standard_normal(300)
    values[:, 1] = 7.0
    expected = stats.norm.ppf((stats.rankdata(values, axis=0) - 3 / 8) / (300 + 1 / 4))
    np.testing.assert_allclose(convergence._scores(values[None])[0], expected, rtol=1e-12, atol=1e-14)
