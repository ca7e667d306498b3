"""A posterior begun at SPEAR's answer beside one that was not: what does the start do for a sampler?

    uv run benchmarks/spear_sampled.py --minutes 15

Batches of digits (8 x 8) behind a perceptron of one hidden ReLU layer of `width`, in float64, labels known, the
Gaussian of public digits as the prior. Adversaries: `spear` reads the images off the first layer, `begun` is `billiard`
whose search climbs from there and from `starts` draws of the prior, `elsewhere` the same from draws of the prior alone.
psnr: of the posterior mean over the batch (of spear: of its images), in dB, empty where SPEAR refuses; log_density: the
largest of a draw; rhat: the worst; ess: the smallest; seconds: processor time. Rows that the CSV holds are not made
again.
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
from pplleak.errors import BadInput
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

KEY = ("adversary", "sigma", "batch", "width", "draw")
COLUMNS = {
    "adversary": str, "sigma": float, "batch": int, "width": int, "draw": int, "psnr": float | None,
    "log_density": float | None, "rhat": float | None, "ess": float | None, "seconds": float,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    batches: tuple[int, ...] = (2, 4)
    width: int = 64
    sigmas: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    clients: int = 2
    """Batches of each kind."""
    chains: int = 8
    draws: int = 150
    """Of a chain."""
    warmup: int = 80
    starts: int = 8
    minutes: float = 15.0
    csv: Path = Path("benchmarks/results/spear_sampled.csv")


def measure(args: Settings, adversary: str, sigma: float, batch: int, draw: int) -> dict[str, Any]:
    network = Named("mlp", {"widths": (args.width,), "activation": "relu"})
    protection = Protection(channel=Named("gaussian", {"sigma": sigma}))
    observed = observe(Scenario(
        "digits", index=batch * draw, batch_size=batch, seed=draw, network=network, protection=protection,
        dtype="float64",
    ))  # fmt: skip
    assert observed.truth is not None
    row = dict.fromkeys(COLUMNS) | dict(zip(KEY, (adversary, sigma, batch, args.width, draw), strict=True))
    truth, start = observed.truth.numpy(), time.process_time()
    settings: dict[str, Any] = {"chains": args.chains, "draws": args.draws, "warmup": args.warmup, "processes": 1}
    try:
        if adversary == "spear":
            found = attack(observed, "optimal", "spear", seed=draw)
            images = found.mode
        else:
            begin = {"begin": "spear"} if adversary == "begun" else {}
            found = attack(
                observed, "optimal", "billiard", settings=settings | begin | {"starts": args.starts}, seed=draw
            )
            images = found.mean
            row |= {"log_density": float(found.stats["lp"].max()), "rhat": found.rhat_max, "ess": found.ess_min}
        row["psnr"] = float(metrics.psnr(images[metrics.match(images, truth)], truth).mean())
    except BadInput:  # no column of the gradient is sparse
        pass
    return row | {"seconds": time.process_time() - start}


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * args.minutes
    table = runs.Rows(args.csv, COLUMNS, KEY)
    done = {table.about(r) for r in table.read()}
    jobs = [(a, s, b, args.width, k) for k in range(args.clients) for b in args.batches for s in args.sigmas
            for a in ("spear", "begun", "elsewhere")]  # fmt: skip
    left = [job for job in jobs if job not in done]
    for k in bar("attacks", len(left)):
        if time.monotonic() > end:
            break
        adversary, sigma, batch, _, draw = left[k]
        table.add([measure(args, adversary, sigma, batch, draw)])
    kinds = ("batch", "width", "sigma", "adversary")
    for kind in dict.fromkeys(tuple(r[n] for n in kinds) for r in table.read()):
        own = [r for r in table.read() if tuple(r[n] for n in kinds) == kind]
        said = [r for r in own if r["psnr"] is not None]
        psnr = f"{statistics.mean(r['psnr'] for r in said):.1f} dB" if said else "refused"
        sampled = ", ".join(f"{r['rhat']:.3f}" for r in said if r["rhat"] is not None)
        batch, width, sigma, adversary = kind
        print(f"batch {batch}, width {width}, sigma {sigma:g}, {adversary}: {psnr} ({len(said)} of {len(own)} answered)"
              + (f", R-hat {sampled}" if sampled else "")
              + f", {statistics.median(r['seconds'] for r in own):.0f} s")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
