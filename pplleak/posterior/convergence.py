"""R-hat and effective sample sizes of every pixel at once.

With z the normal scores of the ranks of all draws, chains cut in halves, m half chains of n draws, W the mean variance
within them and B/n the variance of their means (Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, section 3 and 4):

    R-hat = √((n − 1)/n + B/(n W)),  the larger of that of z and of that of |x − median|
    ESS   = m n / τ,    τ = −1 + 2 Σ_t ρ_t,    ρ_t = 1 − (W − mean over chains of the autocovariance at lag t) / var⁺

with var⁺ = (n − 1)/n W + B/n, the sum over pairs of lags cut at the first that is not positive and made to decrease
(Geyer 1992). The bulk ESS is that of z, the tail ESS the smaller of those of 1[x ≤ 5 % quantile] and 1[x ≤ 95 %].

Many short chains are judged in groups, superchains of m chains that began at one point (Margossian, Hoffman, Sountsov,
Riou-Durand, Vehtari & Gelman 2024, equations 4 to 8): nothing is asked of the length of a chain, only that a group has
forgotten where it began. With B̃ the variance between the means of the superchains, and B_k and W_k that between and
within the chains of superchain k,

    nested R-hat = √(1 + B̃ / mean_k (B_k + W_k)),  again of z and of |x − median|, and of halved chains

and the chains' own means tell how many independent draws they are worth, however short: ESS = chains var(z) / var of
the chains' means.

ArviZ computes the same numbers, quantity by quantity: for 784 pixels that takes longer than many a sampler. Here a
block of pixels takes one pass; the tests hold it to ArviZ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 2**19  # numbers at a time: what stays in a processor's cache
TAILS = (0.05, 0.95)


@dataclass(frozen=True, eq=False)
class Convergence:
    """Of each quantity, (quantity,): R-hat (NaN for a single chain), bulk and tail effective sample size."""

    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray


def measure(*values: np.ndarray, superchains: int = 0) -> Convergence:
    """R-hat and effective sample sizes of arrays (chain, draw, quantity), one after the other; at least four draws.

    superchains: how many there are, each of as many neighbours among the chains; R-hat is then the nested one.

    One of two values in exactly half of the draws each is as far from the median in all: the folded R-hat, which has
    nothing to compare, is left out.

    A quantity that never moves has an R-hat of NaN and as many effective draws as draws; one with a NaN has NaN.
    """
    blocks = []
    for x in values:
        width = max(1, BLOCK // (x.shape[0] * x.shape[1]))
        blocks += [_measure(x[..., k : k + width], superchains) for k in range(0, x.shape[2], width)]
    return Convergence(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def moving(x: np.ndarray) -> np.ndarray:
    """Which quantities of (chain, draw, quantity) are not the same in all draws that R-hat looks at: of an odd number
    it leaves the middle one out, and what is rare may be in that one alone."""
    half = x.shape[1] // 2
    ends = np.concatenate([x[:, :half], x[:, x.shape[1] - half :]], 1)
    found: np.ndarray = (ends != ends[:1, :1]).any((0, 1))
    return found


def bfmi(energy: np.ndarray) -> np.ndarray:
    """Σ (E_t − E_{t−1})² / Σ (E_t − Ē)² of each chain (chain,), energies (chain, draw): how far the energy moves in a
    draw, in units of how far it varies (Betancourt 2016, equation 8)."""
    return np.square(np.diff(energy, axis=1)).mean(1) / energy.var(1, ddof=1)


def _measure(x: np.ndarray, superchains: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    split = _halves(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = _scores(split)
        folded = _scores(np.abs(split - np.median(split, (0, 1))))
        rhat = np.fmax(_rhat(z, superchains), _rhat(folded, superchains)) if len(x) > 1 else np.full(x.shape[2], np.nan)
        tails = ((x <= q).astype(np.float64) for q in np.quantile(x, TAILS, axis=(0, 1)))
        if superchains:
            bulk, low, high = map(_ess_between, (_scores(x), *tails))
        else:
            bulk, low, high = _ess(z), *(_ess(_halves(t)) for t in tails)
        found = rhat, bulk, np.minimum(low, high)
    broken = ~np.isfinite(x).all((0, 1))
    return tuple(np.where(broken, np.nan, f) for f in found)  # type: ignore[return-value]


def _halves(x: np.ndarray) -> np.ndarray:
    """Every chain as two, float64; the draw in the middle of an odd number is left out."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, x.shape[1] - half :]]).astype(np.float64)


def _scores(x: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks among all draws, Blom's offset of 3/8."""
    from scipy.special import ndtri

    flat = np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)
    scores = ndtri((_ranks(flat) - 3 / 8) / (flat.shape[1] + 1 / 4))
    return np.asarray(scores.T).reshape(x.shape)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1 within each row, equal numbers at their mean: scipy.stats.rankdata, whose import takes longer than
    an attack's ranks, and pandas' in a quarter of its time."""
    order = x.argsort(axis=1)
    ordered, place = np.take_along_axis(x, order, 1), np.arange(x.shape[1])
    new = np.concatenate([np.ones((len(x), 1), bool), ordered[:, 1:] != ordered[:, :-1]], 1)
    first = np.maximum.accumulate(np.where(new, place, 0), 1)
    ends = np.concatenate([new[:, 1:], np.ones((len(x), 1), bool)], 1)
    last = np.minimum.accumulate(np.where(ends, place, x.shape[1])[:, ::-1], 1)[:, ::-1]
    ranks = np.empty(x.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, 1)
    return ranks


def _rhat(z: np.ndarray, superchains: int) -> np.ndarray:
    n = z.shape[1]
    if superchains:
        shape = (2, superchains, -1, z.shape[2])  # the first and the second halves of all chains
        centres, variances = z.mean(1).reshape(shape), z.var(1, ddof=1).reshape(shape)
        grouped = centres.swapaxes(0, 1).reshape(superchains, -1, z.shape[2])
        apart = variances.mean((0, 1, 2)) + grouped.var(1, ddof=1).mean(0)
        return np.sqrt(1 + grouped.mean(1).var(0, ddof=1) / apart)
    within, between = z.var(1, ddof=1).mean(0), z.mean(1).var(0, ddof=1)
    return np.sqrt((n - 1) / n + between / within)


def _ess_between(z: np.ndarray) -> np.ndarray:
    means, spread = z.mean(1).var(0, ddof=1), z.var((0, 1))
    return np.where(np.ptp(z, (0, 1)) < 1e-15, z.shape[0] * z.shape[1], len(z) * spread / np.maximum(means, 1e-300))


def _ess(z: np.ndarray) -> np.ndarray:
    from scipy import fft

    m, n, _ = z.shape
    means = z.mean(1, keepdims=True)
    size = fft.next_fast_len(2 * n, real=True)
    power = fft.rfft(z - means, size, axis=1)
    power = (power.real**2 + power.imag**2).mean(0)
    covariance = fft.irfft(power, size, axis=0)[:n] / n  # mean over the chains, (lag, quantity)
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + means.var((0, 1), ddof=1)
    rho = 1 - (within - covariance) / total
    rho[0] = 1
    last = max(0, (n - 3) // 2)  # pair k is (2k, 2k + 1): the last one that the end of the chain leaves whole
    pairs = rho[0 : 2 * last + 2 : 2] + rho[1 : 2 * last + 2 : 2]
    ended = np.where((pairs <= 0).any(0), (pairs <= 0).argmax(0), last)
    decreasing = np.minimum.accumulate(pairs)
    kept = np.arange(len(pairs))[:, None] < ended
    columns = np.arange(z.shape[2])
    beyond = rho[2 * ended, columns]
    beyond = np.where(pairs[ended, columns] >= 0, beyond, np.maximum(beyond, 0))
    tau = -1 + 2 * np.where(kept, decreasing, 0).sum(0) + beyond
    found = m * n / np.maximum(tau, 1 / np.log10(m * n))
    return np.where(np.ptp(z, (0, 1)) < 1e-15, m * n, found)
