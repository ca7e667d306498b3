"""Calibration: is an inference's posterior that of the model? Truths drawn from the model show it.

    x, y ~ p(x, y),  g ~ p(g | x, y);   then for every number T:   rank of T(x, g) among T(x⁽¹⁾, g) … T(x⁽ᴸ⁾, g)

is uniform on 0 … L where x⁽¹⁾ … x⁽ᴸ⁾ are independent draws of the right posterior (Talts et al. 2018, theorem 1). T
are the pixels, and summaries that see what no pixel does: `QUANTITIES`. The last is TARP's (Lemos et al. 2023): its
reference is a draw from the model that knows nothing of g, and the curve of its ranks is TARP's expected coverage.

Pixels of one image are dependent: each standard error is one over truths, and each image counts once. The same checks
are given the posterior twice more, made wrong on purpose (`TWINS`): what they do not reject there, they would not have
seen. This file holds the statistics; `pplleak.studies.calibration.draws` makes what they are computed from.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pplleak.errors import BadInput
from pplleak.studies.calibration import uniformity
from pplleak.studies.calibration.draws import LEVELS, QUANTITIES, TWINS, Draw

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz
    import xarray

CHECKS = {
    "width": "width, over all pixels",
    "shift": "shift, over all pixels",
    "pixels": "a single pixel",
    **QUANTITIES,
}
WIDTH, SHIFT = ("width", "distance_to_mean"), ("shift", "mean_intensity")  # checks that have a direction
SIGNIFICANT = 0.01  # a verdict of "calibrated" is withheld from one in a hundred right posteriors


def pit(draws: Sequence[Draw], twin: str = "") -> np.ndarray:
    """(rank + U)/(L + 1), U ~ Uniform(0, 1): exactly uniform where the ranks are, whatever each L; (truth, quantity).
    NaN where a quantity is not known."""
    row = list(TWINS).index(twin)
    ranks = np.stack([d.ranks[row] for d in draws]).astype(np.float64)
    u = np.random.default_rng(0).random(ranks.shape)
    return np.where(ranks < 0, np.nan, (ranks + u) / (np.array([d.ranked for d in draws])[:, None] + 1))


def to_arviz(draws: Sequence[Draw]) -> xarray.DataTree:
    """The PIT of pixels and summaries as ArviZ's group `prior_sbc`, for `arviz.plot_ecdf_pit` and its tests."""
    u = pit(draws)
    named = {name: u[None, :, k - len(QUANTITIES)] for k, name in enumerate(QUANTITIES)}
    known = {name: values for name, values in named.items() if not np.isnan(values).any()}
    return arviz.from_dict({"prior_sbc": {"x": u[None, :, : -len(QUANTITIES)], **known}}, dims={"x": ["pixel"]})


@dataclass(frozen=True)
class Check:
    """One question to the posterior: how far off, in which direction, and the p-value of "not at all"."""

    name: str
    off: float
    p: float


def checks(u: np.ndarray) -> list[Check]:
    """All checks of a PIT (truth, quantity).

    width: mean over pixels of |u − ½| − ¼, positive where truths lie in the tails of too narrow a posterior, and shift:
    of u − ½, positive where they lie above it; each image gives one number, and a t-test judges their mean. pixels:
    the least uniform one, Bonferroni over pixels. One for each quantity. `off` of the last: mean of u − ½.
    """
    from scipy import stats

    pixels = u[:, : u.shape[1] - len(QUANTITIES)]
    made = []
    for name, values in (("width", np.abs(pixels - 0.5) - 0.25), ("shift", pixels - 0.5)):
        each = values.mean(1)
        made.append(Check(name, float(each.mean()), float(stats.ttest_1samp(each, 0).pvalue)))
    p = uniformity.p_values(pixels)
    worst = int(p.argmin())
    made.append(Check("pixels", float(pixels[:, worst].mean() - 0.5), min(1.0, float(p[worst]) * len(p))))
    for k, name in enumerate(QUANTITIES, pixels.shape[1]):
        if not np.isnan(u[:, k]).any():
            made.append(Check(name, float(u[:, k].mean() - 0.5), float(uniformity.p_values(u[:, k : k + 1])[0])))
    return made


def coverage(draws: Sequence[Draw], twin: str = "") -> list[dict[str, float]]:
    """For each of LEVELS the fraction of pixels inside, its standard error over truths and 95 % interval (t)."""
    from scipy import stats

    inside = np.stack([d.inside[list(TWINS).index(twin)] for d in draws])
    se = inside.std(0, ddof=1) / math.sqrt(len(inside))
    half = stats.t.ppf(0.975, len(inside) - 1) * se
    return [
        {"level": level, "inside": float(m), "se": float(s), "low": float(max(0, m - h)), "high": float(min(1, m + h))}
        for level, m, s, h in zip(LEVELS, inside.mean(0), se, half, strict=True)
    ]


def error_ratio(draws: Sequence[Draw]) -> dict[str, float]:
    """Squared error of the posterior mean over truths, by what the posteriors expected: ratio of the sums, and its
    standard error (delta method). Above 1 the posterior is too sure."""
    expected, realised = (np.array([getattr(d, n) for d in draws]) for n in ("expected", "realised"))
    ratio = realised.sum() / expected.sum()
    se = (realised - ratio * expected).std(ddof=1) / math.sqrt(len(draws)) / expected.mean()
    means = {"expected": float(expected.mean()), "realised": float(realised.mean())}
    return {**means, "ratio": float(ratio), "se": float(se)}


@dataclass(frozen=True)
class Verdict:
    """word: calibrated; else too narrow, too wide or shifted, by the surest check that has a direction, or what else is
    off; p: Bonferroni over all checks; by: the check with the smallest."""

    word: str
    p: float
    by: Check


def judge(u: np.ndarray) -> Verdict:
    """The one word that the checks of a PIT come to."""
    made = checks(u)
    by = min(made, key=lambda c: c.p)
    p = min(1.0, by.p * len(made))
    if p >= SIGNIFICANT:
        return Verdict("calibrated", p, by)
    directed = [c for c in made if c.name in WIDTH + SHIFT and c.p * len(made) < SIGNIFICANT]
    if not directed:
        return Verdict(f"off in {CHECKS[by.name]}", p, by)
    first = min(directed, key=lambda c: c.p)
    return Verdict("shifted" if first.name in SHIFT else "too narrow" if first.off > 0 else "too wide", p, by)


def summarise(draws: Sequence[Draw]) -> dict[str, Any]:
    """The summary of one run's draws, as JSON holds it.

    sbc_p_min: the smallest p-value over pixels and quantities, as it is; everything else that is judged is corrected
    for the number of checks. twins: the verdict on each of TWINS.

    Raises:
        BadInput: fewer than 3 draws.
    """
    if len(draws) < 3:
        raise BadInput(f"a calibration needs at least 3 draws, not {len(draws)}")
    u = pit(draws)
    verdict, known = judge(u), ~np.isnan(u).any(0)

    def over(name: str, take: Any) -> float | None:
        values = np.array([getattr(d, name) for d in draws], dtype=np.float64)
        return None if np.isnan(values).all() else float(take(values[~np.isnan(values)]))

    def plain(v: Verdict) -> dict[str, Any]:
        return {"word": v.word, "p": v.p, "by": v.by.name}

    return {
        "draws": len(draws),
        "verdict": plain(verdict),
        "twins": {t: plain(judge(pit(draws, t))) for t in TWINS if t},
        "checks": [dataclasses.asdict(c) for c in checks(u)],
        "sbc_p_min": float(uniformity.p_values(u[:, known]).min()),
        "ranked": [min(d.ranked for d in draws), max(d.ranked for d in draws)],
        "coverage": coverage(draws),
        "squared_error": error_ratio(draws),
        "converged": sum(d.converged for d in draws),
        "rhat_max": over("rhat_max", np.max),
        "ess_min": over("ess_min", np.min),
        "khat": over("khat", np.median),
        "psnr_mean": over("psnr_mean", np.mean),
        "seconds": over("seconds", np.mean),
    }
