"""Is an inferred noise level to be believed, and what does it cost not to be told?

    uv run benchmarks/noise_level.py

Images, σ and gradients are drawn from the model `optimal` with `sigma=infer` (log σ ~ Normal(log 0.01, 3²)), and each
gradient is attacked by HMC that is told nothing of σ. `inside`: whether the true σ lies in its 90 % interval; `rank`:
of the true σ among 99 draws, uniform where the posterior is right. The first `timed` draws are attacked once more with
σ told: `ratio` is processor time against that, in the same run. A draw that the CSV holds is not attacked again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from pplleak import runs
from pplleak.federation.observation import Observation
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import Posterior
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack
from pplleak.studies.calibration.draws import thinned
from pplleak.studies.calibration.uniformity import p_values
from pplleak.studies.risk.risk import from_model

COLUMNS = {
    "draw": int, "sigma": float, "low": float, "high": float, "inside": bool, "rank": int, "ranked": int,
    "rhat": float, "converged": bool, "fits": bool, "seconds": float, "ratio": float | None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 100
    """Draws from the model."""
    timed: int = 12
    """Of them, also attacked with σ told."""
    network: str = "mlp:widths=(16,)"
    csv: Path = Path("benchmarks/results/noise_level.csv")


def timed(observed: Observation, sigma: float | str, seed: int) -> tuple[Posterior, float]:
    start = time.process_time()
    found = attack(observed, inference="hmc", beliefs={"sigma": sigma}, seed=seed)
    return found, time.process_time() - start


def measure(base: Observation, number: int, compared: bool) -> dict[str, Any]:
    observed = from_model(base, "optimal", {"sigma": "infer"}, number)
    assert observed.latents is not None
    sigma = float(observed.latents["log_sigma"].exp())
    posterior, seconds = timed(observed, "infer", number)
    found, picks = np.exp(posterior.latents["log_sigma"].reshape(-1)), thinned(posterior)
    low, high = np.quantile(found, [0.05, 0.95]).tolist()
    return {
        "draw": number, "sigma": sigma, "low": low, "high": high, "inside": low <= sigma <= high,
        "rank": int((found[picks] < sigma).sum()), "ranked": len(picks), "rhat": posterior.rhat_max,
        "converged": posterior.converged, "fits": bool(posterior.summary["fits"]), "seconds": seconds,
        "ratio": seconds / timed(observed, sigma, number)[1] if compared else None,
    }  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    base = observe(Scenario("digits", network=Named.parse(args.network)))
    table = runs.Rows(args.csv, COLUMNS, ("draw",))
    rows = table.read()
    left = sorted(set(range(args.count)) - {r["draw"] for r in rows})
    timed(base, "infer", 0)  # what the first attack imports and fits is nobody's cost
    for step in bar("draws", len(left)):
        rows = table.add([measure(base, left[step], left[step] < args.timed)])
    inside = np.array([r["inside"] for r in rows], dtype=float)
    ratios = [r["ratio"] for r in rows if r["ratio"] is not None]
    places = np.array([r["rank"] for r in rows]) + np.random.default_rng(0).random(len(rows))  # among equals at random
    uniform = places / (np.array([r["ranked"] for r in rows]) + 1)
    error = math.sqrt(0.9 * 0.1 / len(rows))
    print(f"σ inside its 90 % interval: {inside.mean():.2f} ± {error:.2f} of {len(rows)} draws")
    print(f"ranks of σ: p = {p_values(uniform[:, None])[0]:.2f} that they are uniform")
    print(f"converged: {sum(r['converged'] for r in rows)} of {len(rows)}; fit: {sum(r['fits'] for r in rows)}")
    print(f"processor time against a σ that is told: {np.median(ratios):.2f} (median of {len(ratios)})")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
