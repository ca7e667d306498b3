"""In how many ways n draws with replacement hit each of s entries: s! times Stirling's number of the second kind."""

from __future__ import annotations

import functools

import numpy as np
from scipy import special

COUNTED = 2000  # draws up to which the recurrence is run, n² operations; beyond, the error is below 3e-5
TINY = 1e-300


@functools.cache
def log_coverings(n: int) -> np.ndarray:
    """log of the number of ways, of s = 0, …, n; −∞ where there is none."""
    if n <= COUNTED:
        return _counted(n)
    s = np.arange(n + 1)
    m = np.clip(s, 1, n - 1)
    ways = _asymptotic(n, m.astype(np.float64))
    return np.where(s == n, special.gammaln(n + 1), np.where(s < 1, -np.inf, ways))


def _counted(n: int) -> np.ndarray:
    """Of s = 0, …, n, by W(k + 1, s) = s [W(k, s) + W(k, s − 1)]."""
    ways = np.full(n + 1, -np.inf)
    ways[0], s = 0.0, np.log(np.maximum(np.arange(n + 1), TINY))
    for _ in range(n):
        ways[1:] = s[1:] + np.logaddexp(ways[1:], ways[:-1])
        ways[0] = -np.inf
    return ways


def _asymptotic(n: int, s: np.ndarray) -> np.ndarray:
    """To a relative error of O(1/n), uniformly in 0 < s < n (Temme 1993, Asymptotic estimates of Stirling numbers):

    S(n, s) ≈ √(t / ((1 + t)(x − t))) e^A s^(n−s) C(n, s),   t = n/s − 1,   x / (1 − e^−x) = n/s
    A = −n log x + s log(e^x − 1) − s t + (n − s) log t
    """
    ratio = n / s
    t, x = ratio - 1, ratio + special.lambertw(-ratio * np.exp(-ratio)).real
    a = -n * np.log(x) + s * (x + np.log1p(-np.exp(-x))) - s * t + (n - s) * np.log(t)
    choose = special.gammaln(n + 1) - special.gammaln(n - s + 1)  # times s!
    return a + (n - s) * np.log(s) + choose + np.log(t / ((1 + t) * (x - t))) / 2
