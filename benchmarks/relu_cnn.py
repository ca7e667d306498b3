"""How far does an exact sampler get on the paper's CNN with ReLU? R-hat against seconds.

    uv run benchmarks/relu_cnn.py --data mnist --data-root DIR --sigma 0.03 --minutes 20

One image, its label known, the Gaussian prior fitted to public images. A route starts cold and is interrupted when its
time is up: what it has drawn counts. `seconds` are wall time since the start (search for the MAP and warm-up included),
`cpu_seconds` the processor time of the same (on a busy machine they differ); rows at a quarter, a half, … of the draws
show how R-hat falls. R-hat is rank-normalised split R-hat: rhat_max the worst pixel, rhat_lp the log-density. ess_per_s
is the median over pixels, per second of sampling.

Writes benchmarks/results/relu_cnn.csv, four rows a route; an earlier run of the same route, σ and chains is replaced.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import tyro

from pplleak import attack, programs

COLUMNS = ["route", "sigma", "chains", "draws", "seconds", "cpu_seconds", "rhat_max", "rhat_lp", "acceptance",
           "ess_per_s", "coverage_90"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    index: int = 0
    network: str = "convnet"
    activation: str = "relu"
    sigma: float = 0.1
    routes: tuple[str, ...] = ("billiard",)
    chains: int = 16
    warmup: int = 60
    starts: int = 4
    minutes: float = 20.0
    csv: Path = Path("benchmarks/results/relu_cnn.csv")


class Budget:
    """A progress function that takes the times of the draws, and interrupts the sampling when the time is up."""

    def __init__(self, seconds: float) -> None:
        self.start, self.cpu, self.seconds = time.perf_counter(), time.process_time(), seconds
        self.times: list[tuple[float, float]] = []  # at the beginning of every draw, and at the end of the last

    def __call__(self, label: str, total: int) -> Iterator[int]:
        for k in range(total):
            if label == "sampling":
                self.times.append((time.perf_counter() - self.start, time.process_time() - self.cpu))
                if self.times[-1][0] > self.seconds and k >= 8:
                    raise KeyboardInterrupt
            yield k


def measure(route: str, target: attack.Target, args: Settings) -> list[dict[str, Any]]:
    model = attack.believe(programs.load("models", "gaussian"), target)
    budget = Budget(60 * args.minutes)
    found = programs.load("inference", route)(
        model, target.observed, target.client, progress=budget, chains=args.chains, draws=100_000,
        warmup=args.warmup, starts=args.starts,
    )  # fmt: skip
    x = found.x.reshape(*found.x.shape[:2], -1).astype(np.float64)
    seen = np.concatenate([x, found.stats["lp"][..., None]], -1)
    truth = target.truth.numpy().reshape(-1)
    rows = []
    for part in np.linspace(0.25, 1, 4):
        n = max(8, round(part * seen.shape[1]))
        wall, cpu = budget.times[n]
        rhat = np.asarray(arviz.rhat(seen[:, :n]))
        ess = np.asarray(arviz.ess(seen[:, :n]))
        low, high = np.quantile(x[:, :n].reshape(-1, x.shape[2]), [0.05, 0.95], axis=0)
        rows.append(dict(zip(COLUMNS, [
            route, f"{args.sigma:g}", args.chains, n, f"{wall:.0f}", f"{cpu:.0f}", f"{rhat[:-1].max():.4f}",
            f"{rhat[-1]:.4f}", f"{found.stats['acceptance_rate'][:, :n].mean():.3f}",
            f"{np.median(ess) / (wall - budget.times[0][0]):.2f}", f"{((low <= truth) & (truth <= high)).mean():.3f}",
        ], strict=True)))  # fmt: skip
    return rows


def main(args: Settings) -> None:
    warnings.simplefilter("ignore")
    target = attack.from_data(
        args.data, root=args.data_root, index=args.index, network=args.network, sigma=args.sigma,
        settings={"activation": args.activation},
    )  # fmt: skip
    key = functools.partial(map, lambda r: (r["route"], r["sigma"], str(r["chains"])))
    for route in args.routes:
        new = measure(route, target, args)
        rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
        kept = [row for row, k in zip(rows, key(rows), strict=True) if k not in set(key(new))]
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(kept + new)
        for row in new:
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
