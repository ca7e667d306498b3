"""How large may a batch be that SPEAR separates exactly?

    uv run benchmarks/spear.py --data-root ../shared/data

MNIST digits behind perceptrons of one hidden ReLU layer with random weights, gradients in float32 with noise of
`sigma`. exact_rate: the share of images above 60 dB, over `draws` batches; seconds: of the attack, its median. A row
that the CSV holds is not run again.
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
from pplleak.inference import spear
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named

COLUMNS = {
    "batch": int, "width": int, "trained": bool, "sigma": float, "draws": int, "exact_rate": float, "psnr": float,
    "seconds": float,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    """Where MNIST/ lies."""
    batches: tuple[int, ...] = (2, 4, 8, 12, 16, 24)
    widths: tuple[int, ...] = (256, 1000)
    sigmas: tuple[float, ...] = (1e-9, 1e-6, 1e-5, 1e-4)
    """Noise, the others than the first at a batch of 8 alone."""
    draws: int = 5
    csv: Path = Path("benchmarks/results/spear.csv")


def measure(args: Settings, batch: int, width: int, sigma: float) -> dict[str, Any]:
    rates, seconds, nearness = [], [], []
    for k in range(args.draws):
        scenario = Scenario(
            "mnist", args.data_root, index=100 * k, batch_size=batch, seed=k, noise_seed=k,
            network=Named("mlp", {"widths": (width,), "activation": "relu"}),
            protection=Protection(channel=Named("gaussian", {"sigma": sigma})),
        )  # fmt: skip
        observed = observe(scenario)
        assert observed.truth is not None
        truth = observed.truth.numpy()
        start = time.perf_counter()
        try:
            found = spear.run(None, observed, observed.client, seed=k)
            psnr = metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth)
        except BadInput:
            psnr = torch.zeros(batch).numpy()
        seconds.append(time.perf_counter() - start)
        rates.append(float((psnr > 60).mean()))
        nearness.append(float(psnr.mean()))
    return {"batch": batch, "width": width, "trained": False, "sigma": sigma, "draws": args.draws,
            "exact_rate": statistics.mean(rates), "psnr": statistics.mean(nearness),
            "seconds": statistics.median(seconds)}  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.csv, COLUMNS, ("batch", "width", "trained", "sigma"))
    done = {table.about(r) for r in table.read()}
    first, *noisy = args.sigmas
    wanted = [(b, w, first) for b in args.batches for w in args.widths] + [
        (8, w, s) for w in args.widths for s in noisy
    ]
    left = [job for job in wanted if (job[0], job[1], False, job[2]) not in done]
    for k in bar("batches", len(left)):
        table.add([measure(args, *left[k])])
    for row in table.read():
        print(f"batch {row['batch']}, width {row['width']}, sigma {row['sigma']:g}: {row['exact_rate']:.0%} exact, "
              f"{row['psnr']:.1f} dB, {row['seconds']:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
