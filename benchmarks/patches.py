"""A mixture over patches as a prior for photographs (EPLL, Zoran & Weiss 2011) beside a Gaussian and total variation.

    uv run benchmarks/patches.py --data-root ../shared/data

CIFAR-10 test images, one a gradient, behind a perceptron with Gaussian noise of 0.1, labels known, MAP: otherwise as in
`anomaly`, whose rows and words these are. The patches are fitted to the public half; the weights of total variation are
rows of their own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import anomaly
import tyro


@dataclasses.dataclass(frozen=True)
class Settings(anomaly.Settings):
    data: str = "cifar10"
    images: int = 4
    sigmas: tuple[float, ...] = (0.1,)
    priors: tuple[str, ...] = (anomaly.BASE, "tv:weight=0.3", "tv:weight=3.0", "gaussian", "patches")
    steps: int = 300
    starts: int = 2
    csv: Path = Path("benchmarks/results/patches.csv")


if __name__ == "__main__":
    anomaly.main(tyro.cli(Settings, description=__doc__))
