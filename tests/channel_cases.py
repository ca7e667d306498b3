"""Every channel with its textbook density, in numpy and scipy: what the tests of channels hold them to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from pplleak import channels
from pplleak.channels.autoencoded import Autoencoder
from pplleak.channels.masked import random_mask
from pplleak.channels.projected import measurement
from pplleak.client.update import Update

SIGMA, RATE, STEP, KAPPA, CLIP, CLIENTS, L1, BOUND = 0.3, 0.4, 0.25, 20.0, 0.7, 4, 0.5, 0.6
EPSILON, NOISE_VAR, TAU, SHARE, DOF = 2.0, 4.0, 0.2, 0.1, 9.0


def sigmas(size: int) -> Tensor:
    """A width for each entry, equal within the first third, as within a layer."""
    spread = torch.linspace(0.5, 2, size, dtype=torch.float64)
    return SIGMA * torch.where(torch.arange(size) < size // 3, spread[0], spread)


def others(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    mean, variance, *factor = 0.3 * torch.randn(4, size, dtype=torch.float64, generator=generator)
    return {"mean": mean, "variance": variance.square(), "factor": torch.stack(factor, -1)}


def coder(size: int) -> Autoencoder:
    """An autoencoder whose parts are all drawn: half as many numbers as entries, and as many that are filled in."""
    generator = torch.Generator().manual_seed(7)
    m = max(1, size // 2)
    r = min(size, 2 * m)

    def drawn(*shape: int) -> Tensor:
        return 0.5 * torch.randn(*shape, dtype=torch.float64, generator=generator)

    basis = torch.linalg.qr(drawn(size, r))[0]
    spread = torch.linspace(1.0, 0.3, r, dtype=torch.float64)
    return Autoencoder(
        0.1 * drawn(size), basis, spread, (drawn(3, r), drawn(3), drawn(m, 3)), (drawn(3, m), drawn(3), drawn(r - m, 3))
    )


# -- the textbook: g (D,) and examples (batch, D) whose sum is u, in numpy and scipy ---------------------------------


def rounded(g: np.ndarray, examples: np.ndarray) -> float:
    return float(stats.multivariate_t(examples.sum(0), SIGMA**2 * np.eye(len(g)), DOF).logpdf(g))


def gaussian(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.norm(examples.sum(0), SIGMA).logpdf(g).sum()


def weighted(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.norm(examples.sum(0), sigmas(len(g)).numpy()).logpdf(g).sum()


def laplace(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.laplace(examples.sum(0), SIGMA / math.sqrt(2)).logpdf(g).sum()


def elastic(g: np.ndarray, examples: np.ndarray) -> float:
    def factor(e: np.ndarray | float) -> np.ndarray | float:
        return np.exp(-(np.square(e) + L1 * np.abs(e)) / (2 * SIGMA**2))

    normaliser = 2 * integrate.quad(factor, 0, np.inf)[0]
    return float(np.log(factor(g - examples.sum(0)) / normaliser).sum())


def directional(g: np.ndarray, examples: np.ndarray) -> float:
    u = examples.sum(0)
    return float(stats.vonmises_fisher(u / np.linalg.norm(u), KAPPA).logpdf(g / np.linalg.norm(g)))


def masked(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.norm(random_mask(len(g), RATE, 0).numpy() * examples.sum(0), SIGMA).logpdf(g).sum()


def masked_laplace(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.laplace(random_mask(len(g), RATE, 0).numpy() * examples.sum(0), SIGMA / math.sqrt(2)).logpdf(g).sum()


def pruned(g: np.ndarray, examples: np.ndarray) -> float:
    slab, spike = stats.norm(examples.sum(0), SIGMA).pdf(g), stats.norm(0, SIGMA).pdf(g)
    return np.log(RATE * spike + (1 - RATE) * slab).sum()


def pruned_laplace(g: np.ndarray, examples: np.ndarray) -> float:
    b = SIGMA / math.sqrt(2)
    slab, spike = stats.laplace(examples.sum(0), b).pdf(g), stats.laplace(0, b).pdf(g)
    return np.log(RATE * spike + (1 - RATE) * slab).sum()


def sparse(g: np.ndarray, examples: np.ndarray) -> float:
    kept = (1 - RATE) * stats.norm(examples.sum(0), SIGMA).pdf(g)
    return np.log(np.where(g == 0, RATE, kept)).sum()


def sparse_laplace(g: np.ndarray, examples: np.ndarray) -> float:
    kept = (1 - RATE) * stats.laplace(examples.sum(0), SIGMA / math.sqrt(2)).pdf(g)
    return np.log(np.where(g == 0, RATE, kept)).sum()


def projected(g: np.ndarray, examples: np.ndarray) -> float:
    """With A written out, row by row."""
    signs, rows = (t.numpy() for t in measurement(len(g), RATE, 0))
    angle = 2 * np.pi * np.outer(rows, np.arange(len(g))) / len(g)
    a = (np.cos(angle) + np.sin(angle)) / np.sqrt(len(g)) * signs
    return stats.norm(a @ examples.sum(0), SIGMA).logpdf(a @ g).sum()


def autoencoded(g: np.ndarray, examples: np.ndarray) -> float:
    """The code that was sent, read off g, about that of u: unit by unit."""
    known = coder(len(g))
    mean, basis, spread = (t.numpy() for t in (known.mean, known.basis, known.spread))
    first, bias, second = (t.numpy() for t in known.encoder)
    a = [float(direction @ (examples.sum(0) - mean)) for direction in basis.T]
    hidden = [math.tanh(sum(w * x / s for w, x, s in zip(row, a, spread, strict=True)) + b)
              for row, b in zip(first, bias, strict=True)]  # fmt: skip
    expected = [a[k] + spread[k] * float(np.dot(second[k], hidden)) for k in range(len(second))]
    code = [float(direction @ (g - mean)) for direction in basis.T[: len(second)]]
    return float(stats.norm(expected, SIGMA).logpdf(code).sum())


def topk(g: np.ndarray, examples: np.ndarray) -> float:
    noisy, t = stats.norm(examples.sum(0), SIGMA), np.abs(g[g != 0]).min()
    return np.log(np.where(g == 0, noisy.cdf(t) - noisy.cdf(-t), noisy.pdf(g))).sum()


def percentile(g: np.ndarray, examples: np.ndarray) -> float:
    u, t = examples.sum(0), np.abs(g[g != 0]).min()
    if t >= BOUND - 1e-6:  # the smallest that was sent is not seen: it is some m beyond the bound

        def at(m: float) -> float:
            sent, rest = (g.astype(np.float64) != 0), stats.norm(u, SIGMA)
            beyond = np.where(g > 0, rest.sf(m), rest.cdf(-m))[sent]
            falls = np.where(g > 0, rest.pdf(m), rest.pdf(-m))[sent]
            below = (rest.cdf(m) - rest.cdf(-m))[~sent]
            return float((falls / beyond).sum() * beyond.prod() * below.prod())

        return float(np.log(integrate.quad(at, BOUND, BOUND + 12 * SIGMA, limit=200, epsabs=0)[0]))
    noisy, beyond = (
        stats.norm(u, SIGMA),
        np.where(g > 0, stats.norm.sf(BOUND, u, SIGMA), stats.norm.cdf(-BOUND, u, SIGMA)),
    )
    sent = np.where(np.abs(g) >= BOUND - 1e-6, beyond, noisy.pdf(g))
    return np.log(np.where(g == 0, noisy.cdf(t) - noisy.cdf(-t), sent)).sum()


def svt(g: np.ndarray, examples: np.ndarray) -> float:
    """Threshold, passes and mark by quadrature and sums of their own; how many have passed by their polynomial."""
    c, sent, n = np.clip(examples.sum(0), -BOUND, BOUND), g != 0, math.ceil(SHARE * len(g))
    odds = (2 * n) ** (2 / 3)
    wide, query = BOUND * (1 + odds) / EPSILON, 2 * BOUND * n * (1 + odds) / (odds * EPSILON)
    (a, b), (y, z) = (np.polynomial.legendre.leggauss(k) for k in (12, 40))  # 40: exact for marks of up to 80 entries
    edges = [-30 * wide, -3 * wide, 0.0, TAU, BOUND, 3 * wide, 30 * wide]
    t, w = (np.concatenate([f(lo, hi) for lo, hi in itertools.pairwise(edges)])
            for f in (lambda lo, hi: lo + (hi - lo) * (a + 1) / 2, lambda lo, hi: b * (hi - lo) / 2))  # fmt: skip
    x, v = (y + 1) / 2, z / 2
    misses = stats.laplace(0, query).cdf(t[:, None] - np.abs(c))  # (thresholds, entries): not within one pass
    total, before = np.zeros(len(t)), np.zeros_like(misses)
    for number in range(1, 17):
        within = 1 - misses**number if number < 16 else np.ones_like(misses)
        early, late = before[:, None], (within - before)[:, None]  # (thresholds, marks, entries)
        marked = np.where(sent, 1.0, 1 - x[:, None])
        counts = np.zeros((len(t), len(x), n))  # of how many pass before the last pass: 0, 1, …, n − 1
        counts[..., 0] = 1
        for i in range(len(g)):
            stays = marked[:, i] * late[..., i] + (0.0 if sent[i] else 1 - within[:, None, i])
            shifted = np.concatenate([np.zeros_like(counts[..., :1]), counts[..., :-1]], -1)
            counts = counts * stays[..., None] + shifted * (marked[:, i] * early[..., i])[..., None]
        if number > 1 and counts.sum(-1).max() < 1e-15:
            break
        total += (counts.sum(-1) * v * n * x ** (n - 1)).sum(-1)
        before = within
    chosen = np.log((w * stats.laplace(TAU, wide).pdf(t) * total).sum())
    return float(chosen + stats.laplace(c, 2 * BOUND / NOISE_VAR).logpdf(g)[sent].sum())


def dpsgd(g: np.ndarray, examples: np.ndarray) -> float:
    batch = len(examples)
    own_gradients = batch * examples
    clipped = [v * min(1.0, CLIP / np.linalg.norm(v)) for v in own_gradients]
    return stats.norm(np.mean(clipped, 0), SIGMA * CLIP / batch).logpdf(g).sum()


def dpfedavg(g: np.ndarray, examples: np.ndarray) -> float:
    u = examples.sum(0)
    return stats.norm(u * min(1.0, CLIP / np.linalg.norm(u)), SIGMA * CLIP).logpdf(g).sum()


def quantised(g: np.ndarray, examples: np.ndarray) -> float:
    noisy = stats.norm(examples.sum(0), SIGMA)
    return np.log(noisy.cdf(g + STEP / 2) - noisy.cdf(g - STEP / 2)).sum()


def sign(g: np.ndarray, examples: np.ndarray) -> float:
    return stats.norm.logcdf(g * examples.sum(0) / SIGMA).sum()


def onebit(g: np.ndarray, examples: np.ndarray) -> float:
    """Signs, and the sum of independent truncated normals by its characteristic function: exact, without saddle point.

    E[exp(iω |p|); sign(p) = ±] = exp(iω c − ω² τ² / 2) Φ(c/τ + iωτ)
    """
    known = {n: v.numpy() for n, v in others(len(g)).items()}
    c, tau = np.sign(g) * (examples.sum(0) + known["mean"]), np.sqrt(SIGMA**2 + known["variance"])
    omega = np.linspace(0, 80, 4_001)[:, None] / np.sqrt(len(g))
    z = c / tau + 1j * omega * tau
    # Φ(z) = 1 − Φ(−z) = exp(−z²/2) w(−i z / √2) / 2, of which w, Faddeeva's, is small in the upper half plane
    w, root = special.wofz, np.sqrt(2)
    left = -(z**2) / 2 + np.log(w((-1j * np.minimum(z.real, 0) + z.imag) / root) / 2)
    right = np.log1p(-np.exp(-(z**2) / 2) * w((1j * np.maximum(z.real, 0) - z.imag) / root) / 2)
    log_phi = np.where(z.real < 0, left, right)
    whole = (1j * omega * c - (omega * tau) ** 2 / 2 + log_phi).sum(1) - 1j * omega[:, 0] * np.abs(g).sum()
    top = whole.real.max()
    total = integrate.trapezoid(np.exp(whole - top), omega[:, 0]).real / np.pi  # that at −ω is its conjugate
    return float(np.log(total) + top + np.log(len(g)))


def aggregated(g: np.ndarray, examples: np.ndarray) -> float:
    known = {n: v.numpy() for n, v in others(len(g)).items()}
    covariance = np.diag(known["variance"]) + known["factor"] @ known["factor"].T
    mean = (examples.sum(0) + (CLIENTS - 1) * known["mean"]) / CLIENTS
    total = (CLIENTS - 1) / CLIENTS**2 * covariance + SIGMA**2 * np.eye(len(g))
    return float(stats.multivariate_normal(mean, total).logpdf(g))


@dataclass(frozen=True)
class Case:
    """A channel, its textbook density, whether its density leaves a linear layer's update of one example lazy, and the
    same channel with other noise; how near the two densities are, and draws that tell the twin from it."""

    make: Callable[[Update], channels.Channel]
    textbook: Callable[[np.ndarray, np.ndarray], float]
    lazy: bool
    twin: Callable[[Update], channels.Channel]
    rel: float = 1e-9
    draws: int = 10_000


def aggregating(update: Update, sigma: float = SIGMA, clients: int = CLIENTS) -> channels.Channel:
    return channels.Aggregated(update, sigma, clients=clients, **others(update.size))


def remembering(update: Update, sigma: float = SIGMA) -> channels.Channel:
    known = others(update.size)
    return channels.OneBit(update, sigma, mean=known["mean"], variance=known["variance"])


def clipped(update: Update, factor: float = 1.0) -> channels.Channel:
    return channels.DPSGD(update, noise_multiplier=factor * SIGMA, clip=CLIP)


def filtered(update: Update, factor: float = 1.0) -> channels.Channel:
    return channels.SVT(update, share=SHARE, epsilon=EPSILON, noise_var=factor * NOISE_VAR, gamma=BOUND, tau=TAU,
                        replace=False)  # fmt: skip


def rounding(update: Update, sigma: float = SIGMA) -> channels.Channel:
    """As if all were one tensor."""
    one = torch.ones(1, dtype=torch.float64)
    return channels.Rounded(update, sigma, widths=one, dof=DOF * one, slices=[slice(0, update.size)])


HALF = SIGMA / 2
CASES = {
    "gaussian": Case(lambda u: channels.Gaussian(u, SIGMA), gaussian, True, lambda u: channels.Gaussian(u, HALF)),
    "weighted": Case(
        lambda u: channels.Weighted(u, sigmas(u.size)), weighted, True,
        lambda u: channels.Weighted(u, sigmas(u.size) / 2),
    ),
    "rounded": Case(rounding, rounded, True, lambda u: rounding(u, HALF)),
    "laplace": Case(lambda u: channels.Laplace(u, SIGMA), laplace, False, lambda u: channels.Laplace(u, HALF)),
    "elastic": Case(
        lambda u: channels.Elastic(u, SIGMA, l1=L1), elastic, False, lambda u: channels.Elastic(u, HALF, l1=L1)
    ),
    "directional": Case(
        lambda u: channels.Directional(u, kappa=KAPPA), directional, True,
        lambda u: channels.Directional(u, kappa=2 * KAPPA),
    ),
    "masked": Case(
        lambda u: channels.Masked(u, SIGMA, rate=RATE), masked, True, lambda u: channels.Masked(u, HALF, rate=RATE)
    ),
    "masked, laplace": Case(
        lambda u: channels.Masked(u, SIGMA, rate=RATE, noise="laplace"), masked_laplace, False,
        lambda u: channels.Masked(u, HALF, rate=RATE, noise="laplace"),
    ),
    "pruned": Case(
        lambda u: channels.Pruned(u, SIGMA, rate=RATE), pruned, False,
        lambda u: channels.Pruned(u, SIGMA, rate=RATE / 2),
    ),
    "pruned, laplace": Case(
        lambda u: channels.Pruned(u, SIGMA, rate=RATE, noise="laplace"), pruned_laplace, False,
        lambda u: channels.Pruned(u, HALF, rate=RATE, noise="laplace"),
    ),
    "pruned, noise first": Case(
        lambda u: channels.Pruned(u, SIGMA, rate=RATE, order="noise_first"), sparse, True,
        lambda u: channels.Pruned(u, HALF, rate=RATE, order="noise_first"),
    ),
    "pruned, laplace first": Case(
        lambda u: channels.Pruned(u, SIGMA, rate=RATE, order="noise_first", noise="laplace"), sparse_laplace, False,
        lambda u: channels.Pruned(u, HALF, rate=RATE, order="noise_first", noise="laplace"),
    ),
    "projected": Case(
        lambda u: channels.Projected(u, SIGMA, rate=RATE), projected, False,
        lambda u: channels.Projected(u, HALF, rate=RATE),
    ),
    "autoencoded": Case(
        lambda u: channels.Autoencoded(u, SIGMA, coder=coder(u.size)), autoencoded, False,
        lambda u: channels.Autoencoded(u, HALF, coder=coder(u.size)),
    ),
    "topk": Case(
        lambda u: channels.TopK(u, SIGMA, rate=RATE), topk, False, lambda u: channels.TopK(u, HALF, rate=RATE)
    ),
    "percentile": Case(
        lambda u: channels.Percentile(u, SIGMA, rate=RATE, bound=BOUND), percentile, False,
        lambda u: channels.Percentile(u, HALF, rate=RATE, bound=BOUND), draws=1_500,
    ),
    "svt": Case(filtered, svt, False, lambda u: filtered(u, 4.0), rel=3e-4, draws=300),
    "dpsgd": Case(clipped, dpsgd, True, lambda u: clipped(u, 0.5)),
    "dpfedavg": Case(
        lambda u: channels.DPFedAvg(u, noise_multiplier=SIGMA, clip=CLIP), dpfedavg, True,
        lambda u: channels.DPFedAvg(u, noise_multiplier=HALF, clip=CLIP),
    ),
    "quantised": Case(
        lambda u: channels.Quantised(u, SIGMA, step=STEP), quantised, False,
        lambda u: channels.Quantised(u, HALF, step=STEP),
    ),
    "sign": Case(lambda u: channels.Sign(u, SIGMA), sign, False, lambda u: channels.Sign(u, HALF)),
    "onebit": Case(remembering, onebit, False, lambda u: remembering(u, 3 * SIGMA), rel=1e-3),
    "aggregated": Case(aggregating, aggregated, True, lambda u: aggregating(u, clients=CLIENTS + 2)),
}  # fmt: skip
each_channel = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
