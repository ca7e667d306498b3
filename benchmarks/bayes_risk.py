"""Does the δ-ball decision reach the Bayes risk, and does anything beat it? A posterior that is known exactly.

    uv run benchmarks/bayes_risk.py --data mnist --data-root DIR

Images, labels and gradients are drawn from `models/linear_gaussian.py` behind softmax regression. Its posterior is
Normal(m, Σ), and no ball of radius δ holds more of it than the one around m (Anderson 1955), so that the least risk of
any adversary is

    R*(δ) = 1 − P(‖Σ^½ ε‖ ≤ δ),   ε ~ Normal(0, I)

which is integrated numerically (Imhof 1961). The decisions see draws of the posterior, never m or Σ. Their realised
risk must reach R* and not pass it, and their claims must agree with both. The wrong twin believes in a standard
deviation of three quarters of the true one: it claims what it does not realise.

Writes benchmarks/results/bayes_risk.csv and docs/_static/bayes_risk.png.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from scipy.integrate import quad
from scipy.optimize import brentq

from pplleak import runs
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.models import linear_gaussian
from pplleak.posterior import Posterior
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.risk import risk

SUCCESSES = (0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 0.97)  # δ is put where R* is one less these
TWINS = {1.0: "the right posterior", 0.75: "its wrong twin: sd × 0.75"}
LOOKS = {  # decision -> label, colour, marker, and how far beside δ it is drawn
    "ball": ("δ-ball centre", "#08306b", "o", -0.008),
    "mean": ("posterior mean", "#4292c6", "s", 0.008),
    "medoid": ("medoid", "#969696", "^", 0.0),
}
COLUMNS = ["twin", "decision", "delta", "bayes", "claimed", "claimed_se", "realised", "low", "high", "agrees",
           "reaches", "images"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    sigma: float = 0.1
    """Standard deviation of the noise on every entry of the gradient."""
    count: int = 200
    """Truths."""
    draws: int = 2000
    """Of each posterior."""
    csv: Path = Path("benchmarks/results/bayes_risk.csv")
    figure: Path = Path("docs/_static/bayes_risk.png")


def within(widths: np.ndarray, square: float) -> float:
    """P(Σ_i w_i ε_i² ≤ square) for independent standard normal ε (Imhof 1961, eq. 3.2)."""

    def integrand(t: float) -> float:
        angle = 0.5 * (np.arctan(widths * t).sum() - square * t)
        return float(np.sin(angle) / (t * np.exp(0.25 * np.log1p((widths * t) ** 2).sum())))

    end = brentq(lambda t: 0.25 * np.log1p((widths * t) ** 2).sum() - 30, 0, 1e6 / widths.sum())  # e⁻³⁰ beyond it
    return 0.5 - quad(integrand, 0, end, limit=500)[0] / math.pi


def radius(widths: np.ndarray, success: float) -> float:
    """The δ (RMS) within which that share of the posterior lies."""
    total = widths.sum()
    square = brentq(lambda s: within(widths, s) - success, 0.01 * total, 4 * total)
    return round(math.sqrt(square / len(widths)), 4)


def measure(args: Settings) -> tuple[list[risk.Row], list[float], list[float]]:
    """Rows of every truth, twin, decision and δ (the twin stands in `inference`); the δs (RMS), and 1 − R* at each."""
    protection = Protection.parse(f"gaussian:sigma={args.sigma}")
    base = observe(Scenario(args.data, args.data_root, network=Named("linear"), protection=protection, dtype="float64"))
    generator = np.random.default_rng(0)
    rows: list[risk.Row] = []
    deltas: list[float] = []
    bayes: list[float] = []
    for index in bar("truths", args.count):
        observed = risk.from_model(base, "linear_gaussian", {}, index)
        assert observed.truth is not None
        exact = linear_gaussian.exact_posterior(observed.client, observed, sigma=args.sigma)
        covariance = exact.covariance.numpy()
        if not deltas:  # Σ is the same for every label, from zero weights
            widths = np.linalg.eigvalsh(covariance)
            pixels = len(widths)
            deltas = [radius(widths, success) for success in SUCCESSES]
            bayes = [within(widths, pixels * delta**2) for delta in deltas]
            factor = np.linalg.cholesky(covariance)
        mean = exact.mean.numpy()
        noise = generator.standard_normal((args.draws, pixels))
        spread, densest = noise @ factor.T, np.square(noise[: args.draws // 2]).sum(1).argmin()
        for scale, twin in TWINS.items():
            draws = (mean + scale * spread).reshape(8, -1, *observed.truth.shape)
            found = Posterior(  # independent draws: there are no chains that could disagree
                draws,
                np.zeros((*draws.shape[:2], 1)),
                draws.reshape(args.draws, *observed.truth.shape)[densest],  # no decision is told m
                "approximation",
                truth=observed.truth.numpy(),
            )
            scored = risk.score(found, risk.DISTANCES["rms"], deltas)
            rows += [{"index": index, "inference": twin, **r} for r in scored if r["decision"] in LOOKS]
    return rows, deltas, bayes


def table(rows: Sequence[risk.Row], deltas: Sequence[float], bayes: Sequence[float]) -> list[dict[str, Any]]:
    """agrees: the claim lies in the 95 % interval of what was realised; reaches: R* does."""
    best = dict(zip(deltas, bayes, strict=True))
    made = []
    for c in risk.curves(rows):
        limit = best[c["delta"]]
        made.append({**{k: c[k] for k in COLUMNS if k in c}, "twin": c["inference"], "bayes": limit,
                     "reaches": c["low"] <= limit <= c["high"]})  # fmt: skip
    return made


def picture(rows: Sequence[dict[str, Any]], said: str) -> Figure:
    """A panel a twin: the Bayes success as a line, realised with its interval, claims hollow."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, twin in zip(axes, TWINS.values(), strict=True):
        mine = [r for r in rows if r["twin"] == twin]
        line = [r for r in mine if r["decision"] == "ball"]
        x = np.array([r["delta"] for r in line])
        ax.plot(x, [r["bayes"] for r in line], color="#d95f02", lw=2, label="the best that any attack can do")
        for decision, (label, colour, marker, beside) in LOOKS.items():
            own = [r for r in mine if r["decision"] == decision]
            realised = np.array([r["realised"] for r in own])
            errors = [realised - [r["low"] for r in own], [r["high"] for r in own] - realised]
            at, look = x + beside * np.ptp(x), {"fmt": marker, "color": colour, "ms": 5, "lw": 1}
            ax.errorbar(at, realised, errors, **look, label=f"{label}: what happened")
            if decision == "ball":
                ax.plot(x, [r["claimed"] for r in own], "--", color=colour, lw=1.5, label=f"{label}: what it claims")
        ax.set_title(twin, fontsize=10)
        ax.set_xlabel("δ: root-mean-square error of a pixel")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("images recovered within δ")
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle(said, fontsize=10)
    return figure


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    measured, deltas, bayes = measure(args)
    rows = table(measured, deltas, bayes)
    runs.table(args.csv, rows, COLUMNS, lambda v: f"{v:.5g}" if isinstance(v, float) else v)
    said = f"Softmax regression, {args.data}, σ = {args.sigma:g}: the exact posterior of {args.count} images"
    runs.figure(args.figure, picture(rows, said), dpi=110)
    for twin in TWINS.values():
        for decision in LOOKS:
            mine = [r for r in rows if (r["twin"], r["decision"]) == (twin, decision)]
            above = [(r["realised"] - r["bayes"]) / (r["bayes"] * (1 - r["bayes"]) / r["images"]) ** 0.5 for r in mine]
            print(f"{twin}, {decision}: the Bayes risk is inside the interval at {sum(r['reaches'] for r in mine)} of "
                  f"{len(mine)} δ, the claim at {sum(r['agrees'] for r in mine)}; at most {max(above):+.1f} standard "
                  "errors above the Bayes success")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
