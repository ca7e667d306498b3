"""A learnt attacker, corrected: does it cover, and what does an attack cost once it has learnt?

    uv run benchmarks/npe.py --minutes 20

Images drawn from the model's own Gaussian prior of digits, of one label, behind a perceptron (64-64-10, GELU) and noise
of `sigma`. Inferences: `npe` (trained once, then kept; its first attack is timed apart, as `learning`), `raw` (the same
network without its weights) and `hmc`. coverage: share of the true pixels inside their 90 % interval; khat; seconds:
processor time of one attack; rms: that of the posterior mean. A row an attack; those that the CSV holds are not made
again, and no attack begins after `minutes`.
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

from pplleak import programs, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import metrics
from pplleak.programs import MODEL
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack import attack
from pplleak.studies.risk import risk

COLUMNS = {
    "inference": str, "sigma": float, "draw": int, "coverage": float, "khat": float | None, "converged": bool,
    "rms": float, "seconds": float,
}  # fmt: skip
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "npe": ("npe", {}),
    "raw": ("npe", {"rounds": 0}),
    "hmc": ("hmc", {"chains": 64, "draws": 60}),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    sigmas: tuple[float, ...] = (0.1, 0.03)
    count: int = 60
    hmc: int = 10
    """Draws that hmc attacks as well."""
    label: int = 7
    minutes: float = 20.0
    csv: Path = Path("benchmarks/results/npe.csv")


def truth(base: Observation, draw: int, label: int) -> Observation:
    """The draw-th image of the label among draws from the model."""
    seed = 10_000 * draw
    while (made := risk.from_model(base, MODEL, None, seed)).labels is None or int(made.labels) != label:
        seed += 1
    return made


def measure(base: Observation, inference: str, sigma: float, draw: int, label: int) -> dict[str, Any]:
    observed, (name, settings) = truth(base, draw, label), SETTINGS[inference]
    assert observed.truth is not None
    run, model = programs.load("inference", name), attack.believe(programs.load("models", MODEL), observed)
    start = time.process_time()
    found = run(model, observed, observed.client, seed=draw, **settings)
    seconds = time.process_time() - start
    real = observed.truth.numpy()
    return {"inference": inference, "sigma": sigma, "draw": draw, "coverage": metrics.coverage(found.draws, real),
            "khat": found.khat, "converged": found.converged,
            "rms": float(np.sqrt(np.mean((found.mean - real) ** 2))), "seconds": seconds}  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * args.minutes
    table = runs.Rows(args.csv, COLUMNS, ("inference", "sigma", "draw"))
    done = {table.about(r) for r in table.read()}
    for sigma in args.sigmas:
        base = observe(Scenario("digits", network=Named("mlp"), protection=Protection.parse(f"gaussian:sigma={sigma}")))
        jobs = [("learning", 0), *(("npe", k) for k in range(args.count)), *(("hmc", k) for k in range(args.hmc)),
                *(("raw", k) for k in range(args.count))]  # fmt: skip
        left = [(name, k) for name, k in jobs if (name, sigma, k) not in done]
        for k in bar(f"attacks at sigma {sigma:g}", len(left)):
            if time.monotonic() > end:
                break
            name, draw = left[k]
            row = measure(base, "npe" if name == "learning" else name, sigma, draw, args.label)
            table.add([{**row, "inference": name}])
    rows = table.read()
    for name, sigma in dict.fromkeys((r["inference"], r["sigma"]) for r in rows):
        own = [r for r in rows if (r["inference"], r["sigma"]) == (name, sigma)]
        cover = np.array([r["coverage"] for r in own])
        error = cover.std(ddof=1) / math.sqrt(len(own)) if len(own) > 1 else math.nan
        print(f"{name}, sigma {sigma:g}: {cover.mean():.3f} ± {error:.3f} inside 90 %, rms "
              f"{np.mean([r['rms'] for r in own]):.4f}, {sum(r['converged'] for r in own)} of {len(own)} converged, "
              f"{np.median([r['seconds'] for r in own]):.2f} processor seconds")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
