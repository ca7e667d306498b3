"""Are these N numbers draws from Uniform(0, 1)? An exact test, and the band around the ECDF that it draws.

    s(u) = min over t_j of P(a count as far out as N·F̂(t_j), on its side),   N·F̂(t_j) ~ Binomial(N, t_j),   t_j = j/K

The same test looks everywhere, in the middle and in the tails, each place at the same level (Säilynoja, Bürkner &
Vehtari 2022). A curve leaves the 1 − α band just where its p-value is below α: both come from the
probability that the counts, a Markov chain in j, stay inside given limits, which a recursion gives without simulation.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np

MOST = 100  # places that the ECDF is looked at


def places(count: int) -> np.ndarray:
    """t_j = j/K for j = 1 … K − 1, K = min(count, MOST) (at least 2)."""
    k = max(2, min(count, MOST))
    return np.arange(1, k) / k


def counts(u: np.ndarray) -> np.ndarray:
    """N·F̂ at the places: u (N, quantities) -> (quantities, places)."""
    return (u[:, :, None] <= places(len(u))).sum(0)


def p_values(u: np.ndarray) -> np.ndarray:
    """P(s as small as this | uniform) of each column of u (N, quantities); (quantities,).

    Exact for independent rows; columns need not be independent of each other.
    """
    levels = _levels(len(u))
    counted = counts(u)
    least = levels[np.arange(counted.shape[1]), counted].min(1)
    distinct, where = np.unique(least, return_inverse=True)
    return np.clip(1 - _inside(levels[None] > distinct[:, None, None] * (1 + 1e-9), len(u)), 0, 1)[where]


def band(count: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t, lower and upper ends (including 0 and 1) between which the whole ECDF of `count` uniform numbers stays with
    probability at least `level`."""
    levels = _levels(count)
    cuts = np.unique(levels)
    low, high = 0, len(cuts) - 1  # staying inside gets less probable as the cut grows
    while low < high:
        middle = (low + high + 1) // 2
        kept = _inside((levels >= cuts[middle])[None], count)[0] >= level
        low, high = (middle, high) if kept else (low, middle - 1)
    allowed = levels >= cuts[low]
    lower = allowed.argmax(1) / count
    upper = (count - allowed[:, ::-1].argmax(1)) / count
    t = places(count)
    return np.r_[0, t, 1], np.r_[0, lower, 1], np.r_[0, upper, 1]


@lru_cache(maxsize=32)
def _levels(count: int) -> np.ndarray:
    """(places, count + 1): the smaller of P(C ≤ c) and P(C ≥ c), C ~ Binomial(count, t_j)."""
    from scipy import stats

    c, t = np.arange(count + 1), places(count)[:, None]
    return np.minimum(stats.binom.cdf(c, count, t), stats.binom.sf(c - 1, count, t))


def _inside(allowed: np.ndarray, count: int) -> np.ndarray:
    """P(at every place the count is an allowed one): allowed (cases, places, count + 1) -> (cases,)."""
    state = np.zeros((len(allowed), count + 1))
    state[:, 0] = 1
    for j, step in enumerate(_steps(count)):
        state = (state @ step) * allowed[:, j]
    return state.sum(1)


@lru_cache(maxsize=4)
def _steps(count: int) -> tuple[np.ndarray, ...]:
    """P(count c' at t_j | count c at t_{j−1}), (count + 1, count + 1) each: the others fall on [t_{j−1}, 1]."""
    from scipy import stats

    c = np.arange(count + 1)
    t = np.r_[0, places(count)]
    return tuple(
        stats.binom.pmf(c - c[:, None], count - c[:, None], (b - a) / (1 - a)) for a, b in itertools.pairwise(t)
    )
