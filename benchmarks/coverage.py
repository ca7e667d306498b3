"""Do 90 % intervals cover 90 %? Images drawn from the model's own prior, attacked one by one.

    uv run benchmarks/coverage.py --data mnist --data-root DIR --prior gaussian --inference hmc --sigma 0.03 --count 30
    uv run benchmarks/coverage.py --data mnist --data-root DIR --network convnet --activation relu \
        --inference billiard --count 20 --chains 4 --more warmup 60 processes 1

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
import torch
import tyro

from pplleak import programs, runs
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Precision, Scenario, observe
from pplleak.posterior import metrics
from pplleak.programs import MODEL
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack import attack
from pplleak.studies.risk import risk

COLUMNS = ["model", "inference", "data", "network", "widths", "activation", "sigma", "draw", "coverage_90", "rhat_max",
           "rhat_lp", "ess_min", "psnr_mean", "seconds", "cpu_seconds"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    network: str = "mlp"
    widths: tuple[int, ...] = (64,)
    activation: str = "gelu"
    prior: str = "gaussian"
    inference: str = "hmc"
    sigma: float = 0.1
    count: int = 30
    chains: int = 64
    draws: int = 60
    more: dict[str, int] = dataclasses.field(default_factory=dict)
    """Further settings of the inference."""
    dtype: Precision = "float32"
    csv: Path = Path("benchmarks/results/coverage.csv")


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    widths = args.widths if args.network == "mlp" else ()
    settings = {"widths": widths} if widths else {}
    network = Named(args.network, {**settings, "activation": args.activation})
    protection = Protection.parse(f"gaussian:sigma={args.sigma}")
    base = observe(Scenario(args.data, args.data_root, network=network, protection=protection, dtype=args.dtype))
    model = attack.believe(programs.load("models", MODEL), base, {"prior": args.prior})
    run = programs.load("inference", args.inference)
    key = {
        "model": args.prior, "inference": args.inference, "data": args.data, "network": args.network,
        "widths": " ".join(map(str, widths)), "activation": args.activation, "sigma": str(args.sigma),
    }  # fmt: skip
    table = runs.Rows(args.csv, COLUMNS, (*key, "draw"))
    rows = table.read()
    done = {int(r["draw"]) for r in rows if all(r[k] == v for k, v in key.items())}
    for draw in bar("images from the prior", args.count):
        if draw in done:
            continue
        observed = risk.from_model(base, MODEL, {"prior": args.prior}, 1000 + draw)
        assert observed.truth is not None
        start, cpu = time.perf_counter(), time.process_time()
        found = run(model, observed, base.client, seed=draw, chains=args.chains, draws=args.draws, **args.more)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        truth = observed.truth.numpy()
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
