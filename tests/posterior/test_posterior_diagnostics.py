"""What a posterior says against itself: k-hat, R-hat, thresholds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arviz_stats.base import array_stats
from test_posterior import made, rng

from pplleak.posterior import Posterior, diagnostics
from pplleak.posterior.posterior import ESS, KHAT, RHAT


def log_weights(wide: float, narrow: float, of_narrow: bool, count: int = 4000) -> np.ndarray:
    """log p − log q for draws of q; one of p, q is Normal(0, wide²), the other Normal(0, narrow²)."""
    q, p = (narrow, wide) if of_narrow else (wide, narrow)
    z = q * rng().normal(size=count)
    return -0.5 * (z / p) ** 2 + 0.5 * (z / q) ** 2 + np.log(q / p)


def test_k_hat_condemns_an_approximation_that_is_too_narrow_and_not_one_that_is_too_wide() -> None:
    """A narrow q has a few draws with huge weights (k = 1 − (narrow/wide)²); a wide one has bounded weights."""
    narrow = made(kind="approximation", log_weights=log_weights(1.0, 0.3, of_narrow=True))
    wide = made(kind="approximation", log_weights=log_weights(1.0, 0.3, of_narrow=False))
    assert narrow.khat is not None
    assert wide.khat is not None
    assert narrow.khat > KHAT
    assert wide.khat < 0.5
    assert any("k-hat" in d for d in narrow.doubts)
    assert not any("k-hat" in d for d in wide.doubts)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_hat_is_the_tail_index_of_the_weights_themselves(k: float) -> None:
    """Weights drawn from a Pareto with shape k have it; their reciprocals, with the sign lost, would have k < 0."""
    weights = rng().random(20_000) ** -k
    found = made(kind="approximation", log_weights=np.log(weights)).khat
    lost = made(kind="approximation", log_weights=-np.log(weights)).khat
    assert found is not None
    assert lost is not None
    # the tail that is fitted holds 3 √N weights, and k-hat's error is (1 + k) over the root of their number
    error = (1 + k) / np.sqrt(3 * np.sqrt(20_000))
    assert abs(found - k) < 5 * error
    assert abs(lost - k) > 5 * error or lost < 0
    assert found == pytest.approx(float(array_stats.psislw(-np.log(weights))[1]))


def test_k_hat_does_not_depend_on_the_constant_that_the_density_leaves_out() -> None:
    weights = log_weights(1.0, 0.6, of_narrow=True)
    found = [made(kind="approximation", log_weights=weights + c).khat for c in (0.0, 1000.0, -1000.0)]
    np.testing.assert_allclose(found, found[0], rtol=1e-6)


@pytest.mark.parametrize("rounding", [0.0, 1e-13])
def test_weights_that_are_all_equal_are_a_perfect_approximation(rounding: float) -> None:
    weights = -3.0 + rounding * rng().normal(size=2000)
    perfect = made(kind="approximation", log_weights=weights, reasons=())
    assert perfect.converged, perfect.doubts


def sampler(
    chains: int = 4, draws: int = 500, *, spread: float = 0.0, sticky: float = 0.0, **changes: Any
) -> Posterior:
    """Autoregressive chains around means `spread` apart; `sticky` is the correlation from draw to draw."""
    noise = rng().normal(size=(chains, draws, 1, 1, 2, 2))
    x = noise.copy()
    for t in range(1, draws):
        x[:, t] = sticky * x[:, t - 1] + np.sqrt(1 - sticky**2) * noise[:, t]
    x += spread * np.arange(chains)[:, None, None, None, None, None]
    fields = {"kind": "sampler", "stats": {}, "log_weights": None, "reasons": ()} | changes
    return made().with_(x=x, y=np.zeros(x.shape[:3]), **fields)


def test_chains_that_agree_are_believed() -> None:
    posterior = sampler()
    assert posterior.rhat_max is not None
    assert posterior.ess_min is not None
    assert posterior.rhat_max <= RHAT
    assert posterior.ess_min >= ESS
    assert posterior.doubts == ()
    assert posterior.converged


STUCK = np.zeros((4, 500), dtype=bool)
DIVERGED = STUCK.copy()
DIVERGED[1, :3] = True
DOUBTS: dict[str, tuple[Callable[[], Posterior], str]] = {
    "chains apart": (lambda: sampler(spread=0.5), r"chains disagree: R-hat 1\.\d+"),
    "one pixel apart": (
        lambda: (p := sampler()).with_(
            x=p.x + np.arange(4)[:, None, None, None, None, None] * np.array([[1, 0], [0, 0]])
        ),
        "chains disagree",
    ),
    "log-density apart": (
        lambda: sampler(stats={"lp": np.arange(4)[:, None] + rng(1).normal(size=(4, 500))}),
        "chains disagree",
    ),
    "slow chains": (lambda: sampler(sticky=0.95), r"too few effective draws: ESS \d+ < 400"),
    "few draws": (lambda: sampler(draws=50), "too few effective draws"),
    "one chain": (lambda: sampler(chains=1, draws=2000), "too few chains"),
    "three draws": (lambda: sampler(draws=3), "too few chains or draws"),
    "divergences": (lambda: sampler(stats={"diverging": DIVERGED}), "^3 divergent"),
    "never moved": (lambda: (p := sampler()).with_(x=np.zeros_like(p.x)), "disagree|too few effective"),
    "NaN": (lambda: (p := sampler()).with_(x=np.full_like(p.x, np.nan)), "disagree|too few effective"),
    "a reason of its own": (lambda: sampler(reasons=("the network has kinks",)), "^the network has kinks$"),
    "narrow approximation": (
        lambda: made(kind="approximation", log_weights=log_weights(1, 0.3, of_narrow=True)),
        r"misses the posterior: k-hat \d\.\d+ > 0\.7",
    ),
    "infinite weights": (
        lambda: made(kind="approximation", log_weights=np.r_[np.inf, log_weights(1, 0.9, of_narrow=True)]),
        "misses the posterior",
    ),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("why", DOUBTS)
def test_what_speaks_against_a_result_is_said(why: str) -> None:
    build, said = DOUBTS[why]
    posterior = build()
    assert not posterior.converged
    assert any(re.search(said, doubt) for doubt in posterior.doubts), posterior.doubts
    assert all("\n" not in doubt for doubt in posterior.doubts)


def test_thresholds_are_those_of_the_literature() -> None:
    assert (RHAT, ESS, KHAT) == (1.01, 400, 0.7)


def test_no_divergence_is_zero_and_not_knowing_is_none() -> None:
    assert sampler(stats={"diverging": STUCK}).divergences == 0
    assert sampler().divergences is None


def test_a_changed_copy_computes_its_own_decisions() -> None:
    posterior = made()
    before = posterior.mean
    changed = posterior.with_(x=posterior.x + 1)
    np.testing.assert_allclose(changed.mean, before + 1, rtol=1e-5)
    assert posterior.mean is before


def test_the_worst_r_hat_of_chains_that_never_move_is_infinite() -> None:
    """Each where it began: the variance between them over none within, or 0 / 0; no largest float of 309 digits."""
    for never in (np.inf, np.nan):
        assert diagnostics.worst(np.array([1.0, never])) == np.inf
    assert diagnostics.worst(np.array([1.0, 1.2])) == 1.2
