"""The leaderboard: every defence against its own paper's attack, the classic ones, and the adversary who knows it.

    uv run benchmarks/leaderboard.py --data-root ROOT [--count 20] [--workers 2]

It is `pplleak defend` with these settings: MNIST, a perceptron (784-16-10, GELU), initial weights and those after 200
steps behind the defence. A defence of the folder that is named nowhere below is among them, with its own defaults. With
--only, those alone beside none, into a table of another name. Resumable: the same command goes on, also with a larger
--count. Copies leaderboard.csv (defence × strength × adversary × step) and leaderboard.png to benchmarks/results; the
folder --out has the page, every attack a row, and the trainings. An image behind `svt` takes one to two CPU minutes a
step. `ats` is left out, whose climbs from sixteen starts take as long as all others: docs/train-and-defend.md has it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import tyro

from pplleak import programs
from pplleak.cli import defend
from pplleak.federation import defences
from pplleak.federation.protection import Protection

DEFENCES = (
    "none", "gaussian:sigma=0.01", "gaussian:sigma=0.1", "laplace:sigma=0.1", "topk:rate=0.99",
    "percentile:rate=0.9,bound=0.1,sigma=0.001", "projected:rate=0.9", "projected:rate=0.99", "autoencoded:code=128",
    "dpsgd:noise_multiplier=1", "dpfedavg:noise_multiplier=1", "soteria:rate=0.8", "precode:size=32", "dropout",
    "mixup:others=mnist", "mixup:others=mnist,signs=True", "mixup:images=4,others=mnist,signs=True,public_seed=0",
    "conceal:others=mnist,steps=30", "mix:clients=2,others=mnist", "mix:clients=10,others=mnist",
    "svt", "svt:gamma=0.02,epsilon=10,noise_var=10",
)  # fmt: skip
LEFT_OUT = ("ats", "cvb")  # too slow; behind a convolution, of which a perceptron has none
RESULTS = Path("benchmarks/results")


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path
    """Folder that holds MNIST/raw."""
    count: int = 20
    """Images."""
    workers: int = 1
    only: tuple[str, ...] = ()
    """Defences by name; none: all."""
    table: str = "leaderboard"
    """Name of the files in benchmarks/results."""
    out: Path = Path("leaderboard")


def asked(only: tuple[str, ...] = ()) -> list[str]:
    """Every defence as `pplleak defend` takes it: those above, and those of the folder that are not among them."""
    named = {Protection.parse(text).name for text in DEFENCES}
    found = list(DEFENCES)
    for name in sorted(set(defences.names()) - named - set(LEFT_OUT)):
        images = any(s.name == "others" for s in programs.settings(defences.entry(name)))
        found.append(f"{name}:others=mnist" if images else name)
    return [text for text in found if not only or Protection.parse(text).name in ("none", *only)]


def main(args: Settings) -> int:
    os.environ["PPLLEAK_DATA_ROOT"] = str(args.data_root.resolve())  # whose images other clients and mixtures hold
    code = defend.run([
        "--data", "mnist", "--data-root", str(args.data_root), "--network", "mlp", "--network.widths", "16",
        "--network.activation", "gelu", "--steps", "0", "200", "--count", str(args.count), "--classic-steps", "100",
        "--inference.steps", "100", "--inference.starts", "1", "--workers", str(args.workers), "--out", str(args.out),
        "--defences", *asked(args.only),
    ])  # fmt: skip
    for ending in ("csv", "png"):
        if (made := args.out / f"leaderboard.{ending}").exists():
            shutil.copy(made, RESULTS / f"{args.table}.{ending}")
    return code


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings, description=__doc__)))
