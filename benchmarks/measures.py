"""Which measure of leakage predicts the leak? Rank correlations with what an adversary who knows really finds.

    uv run benchmarks/measures.py --minutes 10

Random cases: a perceptron (width, activation and seed at random; initial weights, or trained for 20 or 200 steps), a
digit, and a protection that is known in full (noise, a mask, measurements, a clipped example or user; its strength at
random over three decades). For each, the measures of `pplleak.studies.bits.measures` and `risk.bounds` at the truth,
and the error of the Bayes adversary's MAP (`optimal`, the Gaussian prior, labels known) in root-mean-square units of a
pixel: the leak. Spearman's rank correlation of every measure with that error, over the cases, with an interval of 95 %
from 1,000 bootstrap resamples of cases; signs so that a measure that predicts perfectly has correlation 1. Also
among those whose attack converged, for a failed search looks like privacy to no measure; and among those of Gaussian
and Laplace noise alone: there δ is noise, and no clipping or mask that the adversary knows of.

A case that benchmarks/results/measures_cases.csv holds is not run again; the same command adds cases until --minutes
are over or there are --count. Writes measures.csv, measures_cases.csv and measures.png to benchmarks/results.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from pplleak import channels, data, runs
from pplleak.client import Client
from pplleak.federation import rounds
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.rounds import Federation
from pplleak.federation.scenario import Scenario, client_of
from pplleak.priors.gaussian import fit_gaussian
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack
from pplleak.studies.bits import measures
from pplleak.studies.risk import bounds

MEASURES = {  # column -> what it is, and whether more of it means more error (1) or less (-1)
    "signal_to_noise": ("entries of the gradient in units of the noise", -1),
    "leakage": ("Fisher information leakage η (Hannun et al. 2021)", -1),
    "influence": ("I²F (Zhang et al. 2023)", 1),
    "influence_bound": ("lower bound of I²F (Zhang et al. 2023)", 1),
    "lipschitz_bound": ("‖δ‖ / L, Lipschitz (Wang et al. 2024)", 1),
    "cramer_rao": ("Cramér-Rao bound tr I⁻¹, no prior", 1),
    "linearised": ("linearised Bayes error tr (K⁻¹ + I)⁻¹", 1),
}
CASE = {
    "case": int, "network": str, "steps": int, "protection": str, "index": int, **dict.fromkeys(MEASURES, float),
    "rms": float, "rms_blind": float, "converged": bool, "cpu_seconds": float,
}  # fmt: skip
SEARCH = {"starts": 2, "steps": 200}
RESAMPLES = 1000
NOISE = ("gaussian", "laplace")  # channels that add noise and nothing else: δ is what they added


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 200
    """Cases."""
    minutes: float = 10.0
    """No case is begun after so many minutes."""
    out: Path = Path("benchmarks/results")


def drawn(case: int) -> tuple[Scenario, int]:
    """The scenario of a case, and how long its network is trained; everything from the case's number."""
    generator = np.random.default_rng(case)
    strength = float(f"{10 ** generator.uniform(-3.5, -0.5):.2g}")
    protection = generator.choice([
        f"gaussian:sigma={strength}", f"laplace:sigma={strength}", f"masked:sigma={strength},rate=0.5",
        f"projected:sigma={strength},rate=0.8", f"dpsgd:noise_multiplier={strength},clip=1.0",
        f"dpfedavg:noise_multiplier={strength},clip=0.5",
    ])  # fmt: skip
    network = Named("mlp", {"widths": (int(generator.choice([8, 16, 32, 64])),),
                            "activation": str(generator.choice(["gelu", "tanh"]))})  # fmt: skip
    scenario = Scenario("digits", index=int(generator.integers(200)), network=network, seed=case, dtype="float64",
                        protection=str(protection))  # fmt: skip
    return scenario, int(generator.choice([0, 20, 200]))


def measure(case: int) -> dict[str, Any]:
    scenario, steps = drawn(case)
    start, client, federation = time.process_time(), client_of(scenario), Federation()
    known = data.public("digits")
    for number in range(1, steps + 1):
        rounds.step(client, known, federation, Protection(), number, case)
    x, y = data.private("digits").batch(scenario.index, 1)
    x = x.to(client.dtype)
    torch.manual_seed(case)
    g = scenario.protection.share(client, x, y, known.x)
    observed = Observation(g, 1, y, client, scenario.protection.filled(), known.x, x)
    posterior = attack(observed, "optimal", "map", settings=SEARCH, seed=case)
    rms = float(np.sqrt(np.mean((posterior.mode - x.numpy()) ** 2)))
    return {
        "case": case, "network": str(scenario.network), "steps": steps, "protection": str(scenario.protection),
        "index": scenario.index, **told(client, scenario.protection, x, y, g, known.x), "rms": rms,
        "rms_blind": float((known.x.mean(0) - x).square().mean().sqrt()), "converged": posterior.converged,
        "cpu_seconds": round(time.process_time() - start, 2),
    }  # fmt: skip


def told(client: Client, protection: Protection, x: Tensor, y: Tensor, g: Tensor, public: Tensor) -> dict[str, float]:
    """Every measure of one case."""

    def channel(update: Any) -> channels.Channel:
        named = protection.filled().channel
        assert named is not None
        return channels.make(named, update, client, 1, public)

    information = bounds.fisher_of(client, channel, x, y)
    prior = fit_gaussian(public, dtype=torch.float64)
    u = client.update(x, y).materialise()
    values = torch.linalg.eigvalsh(information)
    whole = values[0] > 0
    return {
        "signal_to_noise": measures.signal_to_noise(client, channel, x, y),
        "leakage": bounds.leakage(information),
        "influence": measures.influence(client, x, y, g - u),
        "influence_bound": measures.influence_bound(client, x, y, g - u),
        "lipschitz_bound": measures.lipschitz_bound(client, x, y, g - u),
        "cramer_rao": float((1 / values).sum()) if whole else math.inf,
        "linearised": measures.linearised(information, prior.factor @ prior.factor.mT),
    }


def ranked(rows: Sequence[dict[str, Any]], among: str) -> list[dict[str, Any]]:
    """Spearman's correlation of every measure with the error among some cases, and its interval; the best first."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(rows), size=(RESAMPLES, len(rows)))
    rms, made = np.array([r["rms"] for r in rows]), []
    for name, (what, sign) in MEASURES.items():
        values = sign * np.array([r[name] for r in rows])
        values = np.where(np.isfinite(values), values, sign * 1e300)  # infinite ones rank last, and tie
        found = [stats.spearmanr(values[p], rms[p]).statistic for p in picks]
        low, high = np.nanquantile(found, [0.025, 0.975])
        made.append({
            "measure": name, "what": what, "among": among, "cases": len(rows),
            "infinite": int((abs(values) > 1e299).sum()), "spearman": float(stats.spearmanr(values, rms).statistic),
            "low": float(low), "high": float(high),
        })  # fmt: skip
    return sorted(made, key=lambda r: -r["spearman"])


def picture(rows: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(13.5, 6.2), layout="constrained")
    grid = figure.subplots(2, 4, sharey=True)
    kinds = sorted({r["protection"].partition(":")[0] for r in rows})
    for axes, line in zip(grid.flat, table, strict=False):
        for k, kind in enumerate(kinds):
            mine = [r for r in rows if r["protection"].startswith(kind) and math.isfinite(r[line["measure"]])]
            for rested in (True, False):
                some = [r for r in mine if r["converged"] is rested]
                axes.plot([r[line["measure"]] for r in some], [r["rms"] for r in some], "o", ms=3.5, alpha=0.75,
                          color=f"C{k}", mfc=f"C{k}" if rested else "none", label=kind if rested else None)  # fmt: skip
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel(line["what"], fontsize=8)
        interval = f"[{line['low']:.2f}, {line['high']:.2f}]"
        axes.set_title(f"Spearman {line['spearman']:.2f} {interval}", fontsize=9, loc="left")
        axes.tick_params(labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(table) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("error of the attack, RMS of a pixel", fontsize=8)
    grid[0, 0].legend(fontsize=7, frameon=False)
    title = f"Which measure ranks leaks as the attack does? {len(rows)} random clients, protections and digits"
    figure.suptitle(f"{title}\n(hollow: the attack did not converge)", fontsize=11, weight="bold", x=0.01, ha="left")
    return figure


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table, end = runs.Rows(args.out / "measures_cases.csv", CASE, ("case",)), time.monotonic() + 60 * args.minutes
    done = {r["case"] for r in table.read()}
    for case in bar("cases", args.count):
        if case not in done and time.monotonic() < end:
            table.add([measure(case)])
    rows = [r for r in table.read() if r["case"] < args.count]
    if len(rows) < 4:
        raise SystemExit(f"{len(rows)} cases in {args.minutes:g} minutes: too few to rank; the same command goes on")
    groups = {
        "all": rows, "converged": [r for r in rows if r["converged"]],
        "noise alone": [r for r in rows if r["protection"].startswith(NOISE)],
    }  # fmt: skip
    found = [line for among, mine in groups.items() if len(mine) > 3 for line in ranked(mine, among)]
    every = [line for line in found if line["among"] == "all"]
    runs.table(args.out / "measures.csv", found, list(found[0]), lambda v: f"{v:.4g}" if isinstance(v, float) else v)
    runs.figure(args.out / "measures.png", picture(rows, every), dpi=130)
    for r in found:
        print(f"{r['among']:12}{r['cases']:4} {r['spearman']:6.3f} [{r['low']:.3f}, {r['high']:.3f}]  {r['what']}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
