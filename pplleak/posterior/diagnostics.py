"""What tells whether draws are to be believed: R-hat, effective sample size, k-hat; and which example is which.

The update of a batch does not know the order of its examples, so a posterior over batches has a copy of every mode
for every permutation of examples that nothing tells apart. Chains in different copies agree on the batch and disagree
on every pixel: `relabelled` puts the examples of every draw into one order, before anything is computed from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pplleak.posterior import convergence

Kind = Literal["sampler", "approximate sampler", "approximation", "point"]
CHAINS: tuple[Kind, ...] = ("sampler", "approximate sampler")

RHAT, ESS, KHAT = 1.01, 400, 0.7  # thresholds: Vehtari et al. 2021, section 4; Vehtari et al. 2024, section 3
BFMI = 0.3  # Betancourt 2016; the threshold of Stan
HOPELESS = 10.0  # the k-hat of weights that defeat the fit: as far from 0.7 as any that it gives
FEW = 25  # draws below which the tail of the weights is too short for a Pareto fit


def rhat(values: np.ndarray) -> float:
    """Worst rank-normalised split R-hat (Vehtari et al. 2021, eq. 4 and section 4) over (chain, draw, quantity)."""
    return worst(convergence.measure(values).rhat)


def worst(rhat: np.ndarray) -> float:
    """The largest R-hat; that of chains that never moved is infinite."""
    return float(np.nan_to_num(rhat, nan=np.inf, posinf=np.inf).max())


def fewest(ess: np.ndarray) -> float:
    """The smallest effective sample size; one that is not defined is none."""
    return float(np.nan_to_num(ess, nan=0.0).min())


@dataclass(frozen=True)
class Health:
    """What else is known of how a result was computed; None where the inference has no such thing.

    ess_tail        smallest effective sample size of the 5 % and 95 % quantiles, over pixels and log-density
    bfmi            Bayesian fraction of missing information, mean over the chains (one short chain alone is noise)
    acceptance      mean acceptance probability
    elbo_gain       nats that the ELBO's mean rose by from the last but one to the last fifth of the steps
    elbo_error      its standard error
    restarts_nats   standard deviation of the heights that the starts of a MAP reached
    restarts_rms    RMS distance of a pixel between where the starts ended and the best of them
    """

    ess_tail: float | None = None
    bfmi: float | None = None
    acceptance: float | None = None
    elbo_gain: float | None = None
    elbo_error: float | None = None
    restarts_nats: float | None = None
    restarts_rms: float | None = None

    def doubts(self) -> list[str]:
        """Thresholds that are not met, in plain words."""
        reasons = []
        if self.ess_tail is not None and not self.ess_tail >= ESS:
            reasons.append(f"too few effective draws in the tails: ESS {self.ess_tail:.0f} < {ESS}")
        if self.bfmi is not None and not self.bfmi >= BFMI:
            reasons.append(f"the energy is explored slowly: BFMI {self.bfmi:.2f} < {BFMI}")
        if self.elbo_gain is not None and self.elbo_error is not None and self.elbo_gain > max(1, 3 * self.elbo_error):
            reasons.append(f"the ELBO still rises: by {self.elbo_gain:.1f} nats in the last fifth of the steps")
        return reasons


def health(
    ess_tail: np.ndarray | None,
    stats: Mapping[str, np.ndarray],
    curves: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
) -> Health:
    """The numbers of `Health`.

    Args:
        ess_tail: (quantity,) of chains that are long enough to tell; None without such. The rest as in `Posterior`.
    """
    elbo, energy, acceptance = curves.get("elbo", np.empty(0)), stats.get("energy"), stats.get("acceptance_rate")
    heights, apart = (attrs.get(f"starts_{n}") for n in ("log_density", "rms"))
    gain = error = None
    if len(elbo) >= 20:
        before, last = elbo[-2 * (len(elbo) // 5) :].reshape(2, -1)
        gain = float(last.mean() - before.mean())
        error = float(np.sqrt((before.var(ddof=1) + last.var(ddof=1)) / len(last)))
    return Health(
        ess_tail=None if ess_tail is None else fewest(ess_tail),
        bfmi=float(convergence.bfmi(energy).mean()) if energy is not None and energy.shape[1] >= 20 else None,
        acceptance=None if acceptance is None else float(acceptance.mean()),
        elbo_gain=gain,
        elbo_error=error,
        restarts_nats=float(np.std(heights)) if heights and len(heights) > 1 else None,
        restarts_rms=float(np.sqrt(np.mean(np.square(apart[1:])))) if apart and len(apart) > 1 else None,
    )


def khat(log_weights: np.ndarray) -> float | None:
    """Pareto k-hat of importance weights p/q given by their logarithms (N,); None for too few."""
    if len(log_weights) < FEW:
        return None
    if np.ptp(log_weights) < 1e-6:  # p = q up to rounding: weights without a tail
        return 0.0
    from arviz_stats.base import array_stats

    found = float(array_stats.psislw(-log_weights)[1])  # ArviZ smooths the tail of *minus* its argument
    return HOPELESS if math.isnan(found) else found  # one weight is everything, and there is no tail to fit


def smoothed(log_weights: np.ndarray) -> np.ndarray:
    """The same log-weights (N,), normalised, the largest of them smoothed by the Pareto distribution that k-hat is of
    (Vehtari et al. 2024, section 2); as they are, where there are too few or no tail."""
    flat = log_weights - np.logaddexp.reduce(log_weights)
    if len(log_weights) < FEW or np.ptp(log_weights) < 1e-6:
        return flat
    from arviz_stats.base import array_stats

    found, k = array_stats.psislw(-log_weights)
    return flat if math.isnan(k) else np.asarray(found)


def relabelled(
    x: np.ndarray, y: np.ndarray, reference: np.ndarray, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The same draws of unordered batches, each in the order of its examples that lies nearest to the reference.

    For every draw the permutation π that minimises Σ_b ‖x_π(b) − reference_b‖² (an assignment, solved exactly), applied
    to x and y alike. What is computed from the result is the law of the batch in this order: its marginals are not
    those of one example in a fixed place, which all equal the average over the batch, and where two examples
    overlap they are narrower.

    Args:
        x: (chain, draw, example, *input_shape). y: (chain, draw, example).
        reference: (example, *input_shape), the MAP for example.
        labels: (example,) where they are known: only examples of equal label change places. None: all may.
    """
    if x.shape[2] == 1:
        return x, y
    from scipy.optimize import linear_sum_assignment  # slow to import

    draws = x.reshape(-1, x.shape[2], reference[0].size).astype(np.float64)
    flat = reference.reshape(len(reference), -1).astype(np.float64)
    cost = (draws**2).sum(-1)[:, None] + (flat**2).sum(-1)[:, None] - 2 * np.einsum("bp,nep->nbe", flat, draws)
    cost = np.nan_to_num(cost, nan=0.0, posinf=1e300, neginf=0.0)  # (draw, place, example)
    if labels is not None:
        cost[:, labels[:, None] != labels[None]] = np.inf
    order = np.stack([linear_sum_assignment(c)[1] for c in cost]).reshape(y.shape)
    spread = order.reshape(*order.shape, *(1,) * (x.ndim - 3))
    return np.take_along_axis(x, spread, 2), np.take_along_axis(y, order, 2)


def doubts(
    kind: Kind,
    health: Health,
    *,
    rhat_max: float | None,
    ess_min: float | None,
    divergences: int | None,
    khat: float | None,
    recovered: Mapping[str, Any] | None,
) -> list[str]:
    """What these numbers say against a result, in plain words; each number as in `Posterior`.

    Args:
        recovered: how sure labels are that were read off the gradient: `sure`, `confidence` and what
            `others` read instead; None where none were.
    """
    reasons = []
    if recovered and recovered.get("others"):
        read = " ".join(map(str, recovered["labels"]))
        reasons.append(f"rules disagree on the labels: {read} ({recovered['rule']}), but {recovered['others']}")
    elif recovered and recovered["sure"] is False:
        confidence = recovered["confidence"]
        reasons.append("the labels are a guess" + ("" if confidence is None else f" (confidence {confidence:.2f})"))
    if kind in CHAINS:
        if rhat_max is None:
            reasons.append("too few chains or draws to tell whether they agree")
        elif not rhat_max <= RHAT:
            reasons.append(f"chains disagree: R-hat {rhat_max:.3f} > {RHAT}")
        if ess_min is not None and not ess_min >= ESS:
            reasons.append(f"too few effective draws: ESS {ess_min:.0f} < {ESS}")
        if divergences:
            reasons.append(f"{divergences} divergent trajectories")
    reasons += health.doubts()
    if kind == "approximation" and khat is None:
        reasons.append("too few draws to tell how far the approximation is from the posterior")
    if khat is not None and not khat <= KHAT:
        reasons.append(f"the approximation misses the posterior: k-hat {khat:.2f} > {KHAT}")
    return reasons
