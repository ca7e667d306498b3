"""What is a prior of each class worth? The same gradients under p(x) and under p(x | y), paired, on MNIST.

    uv run benchmarks/class_priors.py --data-root DIR [--images 20]

The default network on MNIST, noise 0.1, hmc; labels known. Goes on where it was left
(results/class_priors.csv), and prints the mean gain in PSNR with its standard error.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path

import tyro

import pplleak as pl
from pplleak import runs
from pplleak.progress import bar

OUT = Path(__file__).parent / "results" / "class_priors.csv"
COLUMNS = {"prior": str, "sigma": float, "index": int, "psnr_map": float, "psnr_mean": float, "bits": float,
           "rhat_max": float, "trusted": bool, "seconds": float}  # fmt: skip
PRIORS = ("gaussian", "class_gaussian")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is attacked."""

    data_root: Path = Path("data")
    images: int = 20
    sigma: float = 0.1


def main(settings: Settings) -> None:
    kept = runs.Rows(OUT, COLUMNS, ("prior", "sigma", "index"))
    done = {kept.about(r) for r in kept.read()}
    for index in range(settings.images):
        for prior in PRIORS:
            if (prior, settings.sigma, index) in done:
                continue
            scene = pl.Scenario(data="mnist", root=settings.data_root, index=index,
                                protection=f"gaussian:sigma={settings.sigma}")  # fmt: skip
            found = pl.attack(pl.observe(scene), prior=prior, progress=bar)
            summary = found.summary
            kept.add([{"prior": prior, "sigma": settings.sigma, "index": index,
                       **{n: summary[n] for n in COLUMNS if n in summary}}])  # fmt: skip
    rows = {(r["prior"], r["index"]): r for r in kept.read() if r["sigma"] == settings.sigma}
    images = sorted({i for _, i in rows if all((p, i) in rows for p in PRIORS)})
    for what in ("psnr_map", "psnr_mean", "bits"):
        gains = [rows[PRIORS[1], i][what] - rows[PRIORS[0], i][what] for i in images]
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        print(f"{what}: {statistics.mean(gains):+.2f} ± {error:.2f} over {len(gains)} images")
    for prior in PRIORS:
        print(f"{prior}: {sum(rows[prior, i]['trusted'] for i in images)} of {len(images)} trusted, mean of psnr_mean "
              f"{statistics.mean(rows[prior, i]['psnr_mean'] for i in images):.2f} dB")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
