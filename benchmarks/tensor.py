"""Which batches behind smooth activations does the tensor decomposition separate, and what is its start worth?

    uv run benchmarks/tensor.py --data-root ../shared/data --minutes 4

Real images behind perceptrons of one hidden layer, initial weights, float32. `attack`: `whole` (`--inference tensor`),
`decomposition` (without its last step), `anywhere` (the last step from random vectors), and `paper` (Wang, Lee and Lei
2023: nothing but the next layer's gradient, the span from its tensors, and no last step). A draw is another batch and
other weights. exact_rate: the share of images above 60 dB; psnr: the mean, in dB; cosine: the mean of images and what
was found for them; both 0 where it refuses; seconds: of the attack, the median. Cells that the CSV holds are not run
again.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from pplleak import runs
from pplleak.errors import BadInput
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.inference import tensor
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named

COLUMNS = {
    "data": str, "activation": str, "width": int, "batch": int, "sigma": float, "attack": str, "draws": int,
    "exact_rate": float, "psnr": float, "cosine": float, "refused": int, "seconds": float,
}  # fmt: skip
ATTACKS: dict[str, dict[str, Any]] = {
    "whole": {}, "decomposition": {"steps": 0}, "anywhere": {"tries": 0}, "paper": {"span": "moments", "steps": 0},
}  # fmt: skip
Cell = tuple[str, str, int, int, float, str]


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    """Where MNIST/ lies."""
    draws: int = 5
    minutes: float = 60.0
    csv: Path = Path("benchmarks/results/tensor.csv")


def cells() -> list[Cell]:
    """(data, activation, width, batch, sigma, attack)"""
    both, quiet = ("gelu", "tanh"), 1e-9
    paper = itertools.product(["digits"], both, [1000, 10_000, 40_000], [2, 4], [quiet], ["paper"])
    starts = itertools.product(
        ["digits"], both, [256, 1000], [4, 8, 16], [quiet], ["whole", "decomposition", "anywhere"]
    )
    noise = itertools.product(["digits"], ["gelu"], [1000], [8], [1e-6, 1e-5, 1e-4, 1e-3], ["whole"])
    large = itertools.product(["mnist"], both, [1000, 10_000], [8, 16], [quiet], ["whole"])
    return [*starts, *paper, *noise, *large]


def measure(args: Settings, cell: Cell) -> dict[str, Any]:
    name, activation, width, batch, sigma, how = cell
    network = Named("mlp", {"widths": (width,), "activation": activation})
    exact, psnr, cosines, seconds, refused = [], [], [], [], 0
    for k in range(args.draws):
        observed = observe(Scenario(
            name, args.data_root, network=network, index=50 * k, batch_size=batch, seed=k,
            protection=Protection(channel=Named("gaussian", {"sigma": sigma})), labels="unknown",
        ))  # fmt: skip
        assert observed.truth is not None
        truth, start = observed.truth.numpy(), time.perf_counter()
        try:
            found = tensor.run(None, observed, observed.client, **ATTACKS[how]).mode
        except BadInput:
            found, refused = np.full_like(truth, np.nan), refused + 1
        seconds.append(time.perf_counter() - start)
        if np.isnan(found).any():  # nothing was found
            psnr, exact, cosines = [*psnr, np.zeros(batch)], [*exact, 0.0], [*cosines, np.zeros(batch)]
            continue
        found = found[metrics.match(found, truth)]
        psnr.append(metrics.psnr(found, truth))
        exact.append(float((psnr[-1] > 60).mean()))
        x, y = found.reshape(batch, -1), truth.reshape(batch, -1)
        cosines.append((x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)).clip(1e-12))
    return {
        **dict(zip(COLUMNS, cell, strict=False)), "draws": args.draws, "exact_rate": statistics.mean(exact),
        "psnr": float(np.mean(psnr)), "cosine": float(np.mean(cosines)), "refused": refused,
        "seconds": statistics.median(seconds),
    }  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * args.minutes
    table = runs.Rows(args.csv, COLUMNS, tuple(COLUMNS)[:6])
    done = {table.about(r) for r in table.read()}
    left = [c for c in cells() if c not in done]
    for k in bar("cells", len(left)):
        if time.monotonic() > end:
            break
        table.add([measure(args, left[k])])
    for r in table.read():
        print(f"{r['data']}, {r['activation']}, width {r['width']}, batch {r['batch']}, sigma {r['sigma']:g}, "
              f"{r['attack']}: {r['exact_rate']:.0%} exact, {r['psnr']:.1f} dB, cosine {r['cosine']:.3f}, "
              f"{r['seconds']:.2f} s, {r['draws']} draws, {r['refused']} refused")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
