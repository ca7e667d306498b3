"""How far does an exact sampler get on a ReLU network, the paper's CNN or a perceptron? R-hat against seconds.

    uv run benchmarks/relu_cnn.py --data mnist --data-root DIR --sigma 0.03 --routes billiard hmc --minutes 20
    uv run benchmarks/relu_cnn.py --data mnist --data-root DIR --sigma 0.1 --network mlp --widths 256 \
        --routes refractive --chains 16 --warmup 100 --starts 8 --minutes 5

One image, its label known, a Gaussian prior fitted to public images: to all, or (`--prior class_gaussian`) to those of
the label. A route starts cold and is interrupted when its
time is up: what it has drawn counts. `seconds` are wall time since the start (search for the MAP and warm-up included),
`cpu_seconds` processor time, that of the processes which draw a group of the chains shared out evenly over the draws;
rows at an eighth, two eighths, … of the draws show how R-hat falls. R-hat is rank-normalised split R-hat: rhat_max the
worst pixel, rhat_lp the log-density; with `--superchains` the nested one (`inference/billiard.py`). ess_min is the
smallest of the pixels' effective sample sizes, ess_per_s their median per second of sampling: of processor time, and on
an accelerator of wall time. `hmc` and `smc` cannot cross the jumps: their rows show what that looks like.

Writes benchmarks/results/relu_cnn.csv, eight rows a route, and docs/_static/relu_cnn.png; an earlier run of the same
route, network, prior, σ and chains is replaced.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from pplleak import programs, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import convergence
from pplleak.programs import MODEL
from pplleak.settings import Named
from pplleak.studies.attack import attack

COLUMNS = ["network", "route", "prior", "sigma", "image", "chains", "device", "draws", "seconds", "cpu_seconds",
           "rhat_max", "rhat_lp", "acceptance", "ess_min", "ess_per_s", "coverage_90"]  # fmt: skip
KEY = ("network", "route", "prior", "sigma", "image", "chains", "device")
PARTS = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    index: int = 0
    network: str = "convnet"
    widths: tuple[int, ...] = ()  # of a perceptron
    activation: str = "relu"
    prior: str = "gaussian"
    sigma: float = 0.1
    routes: tuple[str, ...] = ("billiard",)
    chains: int = 4
    superchains: int = 0
    device: str = "cpu"
    warmup: int = 60
    starts: int = 4
    beta: float = 0.0
    """Of billiard's gates; 0: found in warm-up."""
    threads: int = 2
    """Of the search and the warm-up; processes that draw groups of the chains share them out."""
    minutes: float = 20.0
    csv: Path = Path("benchmarks/results/relu_cnn.csv")
    figure: Path = Path("docs/_static/relu_cnn.png")


class Budget:
    """A progress function that takes the times of the draws, and interrupts the sampling when the time is up."""

    def __init__(self, seconds: float) -> None:
        self.start, self.cpu, self.seconds = time.perf_counter(), time.process_time(), seconds
        self.times: list[tuple[float, float]] = []  # at the beginning of every draw, and at the end of the last

    def now(self) -> tuple[float, float]:
        """Wall time, and processor time of this process."""
        return time.perf_counter() - self.start, time.process_time() - self.cpu

    def __call__(self, label: str, total: int) -> Iterator[int]:
        print(f"{self.now()[0]:.0f} s: {label}", flush=True)
        for k in range(total):
            if label == "sampling":
                self.times.append(self.now())
                if self.times[-1][0] > self.seconds and k >= PARTS:
                    raise KeyboardInterrupt
            yield k


def children() -> float:
    """Processor seconds of the processes that this one started and that have ended."""
    used = os.times()
    return used.children_user + used.children_system


def measure(route: str, observed: Observation, args: Settings) -> Iterator[dict[str, Any]]:
    """Rows of all draws, of seven eighths, …: R-hat of many chains takes minutes, and what comes first is kept."""
    model = attack.believe(programs.load("models", MODEL), observed, {"prior": args.prior})
    asked = {"chains": args.chains, "draws": 100_000, "warmup": args.warmup, "starts": args.starts, "beta": args.beta,
             "superchains": args.superchains}  # fmt: skip
    settings: dict[str, Any] = {n: v for n, v in asked.items() if n in programs.defaults(route)}
    if route == "smc":  # islands are its chains; all of its draws are there at once
        settings = {"islands": args.chains, "particles": 32}
    budget, before = Budget(60 * args.minutes), children()
    found = programs.load("inference", route)(model, observed, observed.client, progress=budget, **settings)
    print(", ".join(f"{name} {value}" for name, value in found.attrs.items()), flush=True)
    x = found.x.reshape(*found.x.shape[:2], -1).astype(np.float64)
    seen = np.concatenate([x, found.stats["lp"][..., None]], -1)
    truth, network = observed.truth.cpu().numpy().reshape(-1), " ".join([args.network, *map(str, args.widths)])
    draws, cuda = seen.shape[1], observed.client.device.type == "cuda"
    device = torch.cuda.get_device_name() if cuda else "cpu"
    counts = sorted({max(PARTS, round(k * draws / PARTS)) for k in range(1, PARTS + 1)}) if budget.times else [draws]
    begun, others = budget.times[0][0 if cuda else 1] if budget.times else 0.0, children() - before
    for n in reversed(counts):
        wall, cpu = budget.times[n] if budget.times else budget.now()
        cpu += others * n / draws
        agree = convergence.measure(seen[:, :n], superchains=found.attrs.get("superchains", 0))
        rhat, ess = agree.rhat, agree.ess_bulk
        low, high = np.quantile(x[:, :n].reshape(-1, x.shape[2]), [0.05, 0.95], axis=0)
        accepted = found.stats["acceptance_rate"][:, :n].mean() if "acceptance_rate" in found.stats else np.nan
        shown = "" if np.isnan(accepted) else f"{accepted:.3f}"
        yield dict(zip(COLUMNS, [
            network, route, args.prior, f"{args.sigma:g}", str(args.index), str(args.chains), device, n,
            f"{wall:.0f}", f"{cpu:.0f}", f"{rhat[:-1].max():.4f}", f"{rhat[-1]:.4f}", shown,
            f"{ess[:-1].min():.0f}", f"{np.median(ess) / ((wall if cuda else cpu) - begun):.2f}",
            f"{((low <= truth) & (truth <= high)).mean():.3f}",
        ], strict=True))  # fmt: skip


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """R-hat of the worst pixel against seconds, its excess over 1: a line an image, a colour a route and device."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def kind(row: dict[str, Any]) -> str:
        where = "processor" if row["device"] == "cpu" else row["device"].removeprefix("NVIDIA ")
        known = ", prior of the class" if row["prior"].startswith("class") else ""
        return f"{row['route']}, {row['chains']} chains, {where}{known}"

    panels = sorted({(r["network"], r["sigma"]) for r in rows}, key=lambda p: (p[0], float(p[1])))
    kinds = list(dict.fromkeys(map(kind, rows)))
    figure, grid = plt.subplots(1, len(panels), sharey=True, squeeze=False, figsize=(3.6 * len(panels) + 0.8, 3.8))
    for axes, panel in zip(grid[0], panels, strict=True):
        inside = [r for r in rows if (r["network"], r["sigma"]) == panel]
        for key in dict.fromkeys(tuple(r[k] for k in KEY) for r in inside):
            mine = [r for r in inside if tuple(r[k] for k in KEY) == key]
            seconds, excess = ([float(r[k]) for r in mine] for k in ("seconds", "rhat_max"))
            label = kind(mine[0])
            axes.plot(seconds, [e - 1 for e in excess], "o-", color=f"C{kinds.index(label) % 10}", ms=3, lw=1.2,
                      label=label)  # fmt: skip
        axes.axhline(0.01, color="#333333", linestyle="--", linewidth=0.8)
        axes.set(xlim=(0, None), yscale="log", title=f"{panel[0]}, noise σ = {panel[1]}",
                 xlabel="seconds from a cold start")  # fmt: skip
        axes.yaxis.set_major_formatter(lambda excess, _: f"{1 + excess:g}")
        lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(lines.values(), lines.keys(), fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("R-hat of the worst pixel\n(converged below the dashed line, 1.01)")
    figure.tight_layout()
    runs.figure(path, figure, dpi=110)


def main(args: Settings) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    settings = {"activation": args.activation, **({"widths": args.widths} if args.widths else {})}
    protection = Protection.parse(f"gaussian:sigma={args.sigma}")
    observed = observe(
        Scenario(
            args.data,
            args.data_root,
            args.index,
            network=Named(args.network, settings),
            protection=protection,
            device=args.device,
        )
    )
    for route in args.routes:
        new: list[dict[str, Any]] = []
        for row in measure(route, observed, args):
            new = [row, *new]
            rows = runs.Rows(args.csv, COLUMNS, KEY).add(new)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        picture(rows, args.figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
