"""Do 90 % intervals cover 90 %? Images drawn from the model's own prior, attacked one by one.

    uv run benchmarks/coverage.py --data mnist --data-root DIR --model gaussian --inference hmc --sigma 0.03 --count 30

A row an image is appended to the CSV as soon as it is there; a run with the same CSV goes on where it stopped. The last
line gives mean ± standard error over images (pixels of one image are not independent), and how many images converged.
`seconds` are wall time, `cpu_seconds` the processor time of the same, on one thread: on a busy machine they differ.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pyro
import torch
import tyro

from pplleak import programs, runs
from pplleak.federation.observation import Observation
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.studies.attack import attack

COLUMNS = ["model", "inference", "data", "network", "widths", "activation", "sigma", "draw", "coverage_90", "rhat_max",
           "rhat_lp", "ess_min", "psnr_mean", "seconds", "cpu_seconds"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    network: str = "mlp"
    widths: tuple[int, ...] = (64,)
    activation: str = "gelu"
    model: str = "gaussian"
    inference: str = "hmc"
    sigma: float = 0.1
    count: int = 30
    chains: int = 64
    draws: int = 60
    dtype: attack.Precision = "float32"
    csv: Path = Path("benchmarks/results/coverage.csv")


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    settings = {"widths": args.widths} if args.network == "mlp" else {}
    base = attack.from_data(
        args.data, root=args.data_root, network=args.network, sigma=args.sigma, dtype=args.dtype,
        settings={**settings, "activation": args.activation},
    )  # fmt: skip
    model = attack.believe(programs.load("models", args.model), base)
    run = programs.load("inference", args.inference)
    key = {
        "model": args.model, "inference": args.inference, "data": args.data, "network": args.network,
        "widths": " ".join(map(str, args.widths)), "activation": args.activation, "sigma": str(args.sigma),
    }  # fmt: skip
    table = runs.Rows(args.csv, COLUMNS, (*key, "draw"))
    rows = table.read()
    done = {int(r["draw"]) for r in rows if all(r[k] == v for k, v in key.items())}
    for draw in bar("images from the prior", args.count):
        if draw in done:
            continue
        pyro.set_rng_seed(1000 + draw)
        with torch.no_grad(), pyro.poutine.trace() as traced:
            model(base.client, 1)
        x, y, g = (traced.trace.nodes[n]["value"] for n in ("x", "y", "g"))
        start, cpu = time.perf_counter(), time.process_time()
        found = run(model, Observation(g, 1, y), base.client, seed=draw, chains=args.chains, draws=args.draws)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        truth = x.numpy()
        row = {**key, "draw": draw, "coverage_90": metrics.coverage(found.draws, truth), "rhat_max": found.rhat_max,
               "rhat_lp": found.rhat_lp, "ess_min": found.ess_min,
               "psnr_mean": float(metrics.psnr(found.mean, truth)[0]), "seconds": seconds,
               "cpu_seconds": cpu_seconds}  # fmt: skip
        rows = table.add([row])
    mine = [r for r in rows if all(r[k] == v for k, v in key.items())]
    cover = np.array([float(r["coverage_90"]) for r in mine])
    rhat = np.array([float(r["rhat_max"]) for r in mine])
    error = cover.std(ddof=1) / math.sqrt(len(cover)) if len(cover) > 1 else math.nan
    print(f"{len(mine)} images: coverage {cover.mean():.3f} ± {error:.3f}; R-hat max median {np.median(rhat):.4f}, "
          f"worst {rhat.max():.4f}; {np.mean([float(r.get('cpu_seconds') or r['seconds']) for r in mine]):.0f} "
          f"processor seconds an image")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
