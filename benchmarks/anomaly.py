"""An auto-encoder's anomaly score as a prior (GI-PIP, Sun et al. 2024) beside total variation.

    uv run benchmarks/anomaly.py --data-root ../shared/data

MNIST test images, one a gradient, behind a perceptron with Gaussian noise of `sigma`, labels known, MAP. The
auto-encoder is the prior `vae`'s, fitted to the public half. Every weight of `priors` is a row of its own; none is
chosen. psnr: the mean over `images`, in dB, ± its standard error; ahead: of `base` on the same images, paired;
seconds: processor time, a fit included where it was the first to need it. Rows that the CSV holds are
not made again.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import tyro

from pplleak import runs
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

COLUMNS = {"prior": str, "sigma": float, "index": int, "psnr": float, "seconds": float}
BASE = "tv:weight=1.0"


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "mnist"
    data_root: Path = Path("data")
    images: int = 5
    sigmas: tuple[float, ...] = (0.01,)
    priors: tuple[str, ...] = (
        "uniform", "tv:weight=0.3", BASE, "tv:weight=3.0", "anomaly:weight=1.0", "anomaly:weight=5.0",
        "anomaly:weight=20.0", "anomaly:weight=5.0,tv=0.3",
    )  # fmt: skip
    base: str = BASE
    steps: int = 400
    starts: int = 4
    csv: Path = Path("benchmarks/results/anomaly.csv")


def measure(args: Settings, prior: str, sigma: float, index: int) -> dict[str, Any]:
    protection = Protection(channel=Named("gaussian", {"sigma": sigma}))
    observed = observe(Scenario(args.data, args.data_root, index=index, protection=protection))
    assert observed.truth is not None
    start = time.process_time()
    found = attack(observed, "optimal", "map", prior=prior,
                   settings={"steps": args.steps, "starts": args.starts}, seed=0)  # fmt: skip
    psnr = metrics.psnr(found.mode, observed.truth.numpy())
    return {"prior": prior, "sigma": sigma, "index": index, "psnr": float(psnr.mean()),
            "seconds": time.process_time() - start}  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.csv, COLUMNS, ("prior", "sigma", "index"))
    done = {table.about(r) for r in table.read()}
    jobs = [(p, s, k) for s in args.sigmas for p in args.priors for k in range(args.images)]
    left = [job for job in jobs if job not in done]
    for k in bar("attacks", len(left)):
        table.add([measure(args, *left[k])])
    told = {(r["prior"], r["sigma"], r["index"]): r["psnr"] for r in table.read()}
    for sigma in args.sigmas:
        for prior in args.priors:
            psnr = [told[prior, sigma, k] for k in range(args.images)]
            ahead = [told[prior, sigma, k] - told[args.base, sigma, k] for k in range(args.images)]
            error = [statistics.stdev(v) / len(v) ** 0.5 for v in (psnr, ahead)]
            print(f"sigma {sigma:g}, {prior}: {statistics.mean(psnr):.1f} ± {error[0]:.1f} dB, ahead of "
                  f"{Named.parse(args.base).name} by {statistics.mean(ahead):+.1f} ± {error[1]:.1f}")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
