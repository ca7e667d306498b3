"""What noise leaves of SPEAR's exact batches, and what a posterior makes of them that begins there.

    uv run benchmarks/spear_noise.py --minutes 15

Batches of digits (8 x 8) behind a perceptron of one hidden ReLU layer of `width`, in float64, labels known.
Adversaries: `spear` reads the images off the first layer; `begun` is the MAP under the Gaussian of public digits,
climbed from there (one start); `elsewhere` the same from draws of the prior (two starts). psnr: the mean over the
batch, 0 where nothing was found; log_density: of the MAP; seconds: processor time. Rows that the CSV holds are not made
again.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import tyro

from pplleak import runs
from pplleak.errors import BadInput
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

COLUMNS = {
    "adversary": str, "sigma": float, "batch": int, "width": int, "draw": int, "psnr": float,
    "log_density": float | None, "seconds": float,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    batch: int = 8
    width: int = 256
    sigmas: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3)
    draws: int = 5
    steps: int = 400
    minutes: float = 15.0
    csv: Path = Path("benchmarks/results/spear_noise.csv")


def measure(args: Settings, adversary: str, sigma: float, draw: int) -> dict[str, Any]:
    network = Named("mlp", {"widths": (args.width,), "activation": "relu"})
    protection = Protection(channel=Named("gaussian", {"sigma": sigma}))
    observed = observe(Scenario(
        "digits", index=args.batch * draw, batch_size=args.batch, seed=draw, network=network, protection=protection,
        dtype="float64",
    ))  # fmt: skip
    assert observed.truth is not None
    climb: dict[str, Any] = {"begun": {"begin": "spear", "starts": 1, "lr": 0.003}, "elsewhere": {"starts": 2}}
    truth, start = observed.truth.numpy(), time.process_time()
    psnr, height = 0.0, None
    try:
        if adversary == "spear":
            found = attack(observed, "optimal", "spear", seed=draw)
        else:
            found = attack(observed, "optimal", "map", settings={"steps": args.steps, **climb[adversary]}, seed=draw)
            height = float(found.stats["lp"].max())
        psnr = float(metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth).mean())
    except BadInput:  # no column of the gradient is sparse
        pass
    return {"adversary": adversary, "sigma": sigma, "batch": args.batch, "width": args.width, "draw": draw,
            "psnr": psnr, "log_density": height, "seconds": time.process_time() - start}  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * args.minutes
    table = runs.Rows(args.csv, COLUMNS, ("adversary", "sigma", "batch", "width", "draw"))
    done = {table.about(r) for r in table.read()}
    jobs = [(a, s, k) for k in range(args.draws) for s in args.sigmas for a in ("spear", "begun", "elsewhere")]
    left = [(a, s, k) for a, s, k in jobs if (a, s, args.batch, args.width, k) not in done]
    for k in bar("attacks", len(left)):
        if time.monotonic() > end:
            break
        table.add([measure(args, *left[k])])
    rows = [r for r in table.read() if (r["batch"], r["width"]) == (args.batch, args.width)]
    for sigma, adversary in dict.fromkeys((r["sigma"], r["adversary"]) for r in rows):
        own = [r for r in rows if (r["sigma"], r["adversary"]) == (sigma, adversary)]
        psnr = [r["psnr"] for r in own]
        error = statistics.stdev(psnr) / math.sqrt(len(psnr)) if len(psnr) > 1 else math.nan
        print(f"sigma {sigma:g}, {adversary}: {statistics.mean(psnr):.1f} ± {error:.1f} dB, "
              f"{statistics.median(r['seconds'] for r in own):.1f} s, {len(own)} batches")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
