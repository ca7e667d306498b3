"""Reconstruction robustness: how often any adversary comes within δ behind DP-SGD (Hayes et al. 2023).

    P(d(x, x̂) ≤ δ) ≤ γ = sup { μ(E) : ν(E) ≤ κ },     κ = max over x₀ of P(d(x, x₀) ≤ δ)

κ is what the prior alone allows: the best guess without seeing g. μ and ν are what g looks like with and without the
example, T steps of the subsampled Gaussian mechanism in units of the clip: ν = Normal(0, z² I_T), μ = Normal(b, z² I_T)
with b ~ Bernoulli(q)^T. One release, or T of the same example, in closed form: γ = Φ(Φ⁻¹(κ) + √T / z).

Why it holds: with S_x the outputs that succeed for x, E_x ν(S_x) ≤ κ since ν does not know x, and μ_x(S_x) is at most
sup { μ(E) : ν(E) ≤ ν(S_x) }, a concave function of ν(S_x). The adversary may know all other examples of the batch; an
example moves the sum of clipped gradients by at most the clip, because ν leaves it out (sensitivity C, not 2C).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pplleak.errors import BadInput, require_positive
from pplleak.posterior import decisions


@dataclass(frozen=True)
class Mass:
    """κ, the prior mass of the best ball: an estimate, and an upper confidence limit on the mass of that ball."""

    value: float
    upper: float


def prior_mass(draws: np.ndarray, delta: float, *, confidence: float = 0.95) -> Mass:
    """κ(δ) from prior draws (N, *input_shape), δ an L2 distance over all pixels.

    The centre is found on three quarters of the draws (`decisions.ball`), its mass counted on the last one, with a
    one-sided Clopper-Pearson limit. Where the prior is symmetric around one peak (Gaussian images) the best centre is
    the mean, which is among the candidates (Anderson 1955); for other priors a better ball may have been missed.
    """
    require_positive(delta=delta)
    parts = decisions.split(draws[:, None])
    centre = decisions.ball(parts, parts.fit.mean(0), delta)
    inside = int((((parts.score - centre) ** 2).reshape(len(parts.score), -1).sum(1) <= delta**2).sum())
    return Mass(inside / len(parts.score), _upper(inside, len(parts.score), confidence))


def _upper(hits: int, count: int, confidence: float) -> float:
    from scipy import stats

    return 1.0 if hits == count else float(stats.beta.ppf(confidence, hits + 1, count - hits))


def _check(kappa: float, noise_multiplier: float, steps: int) -> None:
    require_positive(noise_multiplier=noise_multiplier, steps=steps)
    if not 0 <= kappa <= 1:
        raise BadInput(f"kappa is a probability, the prior mass of a ball, not {kappa}")


def gaussian(kappa: float, noise_multiplier: float, *, steps: int = 1) -> float:
    """γ = Φ(Φ⁻¹(κ) + √T / z): full-batch DP-SGD of noise multiplier z, T = steps releases (Hayes et al. 2023)."""
    from scipy import stats

    _check(kappa, noise_multiplier, steps)
    return float(stats.norm.cdf(stats.norm.ppf(kappa) + math.sqrt(steps) / noise_multiplier))


def subsampled(
    kappa: float,
    noise_multiplier: float,
    *,
    rate: float,
    steps: int,
    draws: int = 100_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> float:
    """An upper confidence limit on γ for Poisson-subsampled DP-SGD (Hayes et al. 2023, their Monte Carlo estimate).

    The best E is where the likelihood ratio r = dμ/dν is largest (Neyman-Pearson): with r at draws of ν, the threshold
    is the order statistic that leaves a ν-mass of at least κ above it; the share of draws of μ above it estimates μ(E).
    Each is taken at a limit of confidence (1 + c)/2, so that both hold with confidence c. For one step,

        γ = (1 − q) κ + q Φ(Φ⁻¹(κ) + 1/z)

    exactly, since r grows with the one coordinate.

    Args:
        rate: q, the probability that a step's batch holds the example. steps: T. draws: of ν and of μ.
    """
    from scipy import stats

    _check(kappa, noise_multiplier, steps)
    if not 0 < rate <= 1:
        raise BadInput(f"rate must lie in (0, 1], the probability that a step takes the example, not {rate}")
    if rate == 1:
        return gaussian(kappa, noise_multiplier, steps=steps)
    if steps == 1:
        return (1 - rate) * kappa + rate * gaussian(kappa, noise_multiplier)
    generator = np.random.default_rng(seed)
    z, each = noise_multiplier, (1 + confidence) / 2

    def ratios(included: bool) -> np.ndarray:
        log_mixed = np.zeros(draws)
        for _ in range(steps):  # step by step: draws x steps would not fit
            g = z * generator.standard_normal(draws)
            g += included * (generator.random(draws) < rate)
            log_mixed += np.logaddexp(math.log1p(-rate), math.log(rate) + (g - 0.5) / z**2)
        return log_mixed

    without, with_ = np.sort(ratios(False)), ratios(True)
    outside = int(stats.binom.ppf(each, draws, kappa))  # at most so many draws of ν fall into a set of mass κ
    threshold = -np.inf if outside >= draws else without[draws - 1 - outside]
    return min(1.0, _upper(int((with_ > threshold).sum()), draws, each))
