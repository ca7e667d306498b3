"""How fast is each sampler on one and the same posterior? Ours, and the NUTS of Pyro, NumPyro and BlackJAX.

    uv run --group bench benchmarks/sampler.py --data mnist --data-root DIR --sigma 0.03

One image, one network, one observation; the Gaussian prior in the same non-centred PCA coordinates for all. Every
sampler starts cold: compilation, the search for the MAP and warm-up are in `warmup_s`. ESS/s counts the sampling alone.
`seconds_to_rhat_1.01` is warm-up plus the sampling time of the shortest run of draws whose worst rank-normalised R-hat
(all pixels and the log-density) is below 1.01; empty where no run was.

Writes benchmarks/results/sampler.csv (a row a sampler) and sampler.png, and prints the ratios to ours. The peers in JAX
(`peers.py`) sample the Gaussian prior under an MLP only. Precision: ours and theirs float32, Pyro's float64 (its mass
matrix is).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import arviz
import numpy as np
import torch
import tyro

from pplleak import programs, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.inference import hmc, nuts
from pplleak.programs import MODEL
from pplleak.settings import Named
from pplleak.studies.attack import attack

COLUMNS = ["posterior", "sampler", "device", "chains", "warmup_s", "seconds_to_rhat_1.01", "ess_per_s_min",
           "ess_per_s_median", "rhat_max", "peak_mb"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    prior: str = "gaussian"
    network: str = "mlp"
    widths: tuple[int, ...] = (256,)
    activation: str = "gelu"
    sigma: float = 0.03
    samplers: tuple[Literal["pplleak", "numpyro", "blackjax", "pyro"], ...] = ("pplleak", "numpyro", "blackjax", "pyro")
    chains: int = 128
    draws: int = 100
    warmup: int = 100
    peer_chains: tuple[int, ...] = (4, 16)
    peer_warmup: int = 300
    peer_draws: int = 250
    pyro_warmup: int = 150
    pyro_draws: int = 100
    csv: Path = Path("benchmarks/results/sampler.csv")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """draws (chain, draw, pixels + 1), the log-density last; seconds of everything before them, and of them."""

    draws: np.ndarray
    warmup_s: float
    sampling_s: float


class Clock:
    """A progress function that takes the time at which sampling began."""

    def __init__(self, label: str, skip: int = 0) -> None:
        self.label, self.skip, self.began = label, skip, 0.0

    def __call__(self, label: str, total: int) -> Iterator[int]:
        for k in range(total):
            if label == self.label and k == self.skip:
                self.began = time.perf_counter()
            yield k


def flat(posterior: Any) -> np.ndarray:
    x = posterior.x.reshape(*posterior.x.shape[:2], -1).astype(np.float64)
    return np.concatenate([x, posterior.stats["lp"][..., None]], -1)


def pplleak(observed: Observation, model: Any, args: Settings) -> Run:
    clock, start = Clock("sampling"), time.perf_counter()
    found = hmc.run(model, observed, observed.client, progress=clock, chains=args.chains, draws=args.draws,
                    warmup=args.warmup)  # fmt: skip
    end = time.perf_counter()
    return Run(flat(found), clock.began - start, end - clock.began)


def pyro_nuts(observed: Observation, model: Any, args: Settings) -> Run:
    """One chain: Pyro runs its chains one after another, so ESS/s does not depend on their number."""
    clock, start = Clock("NUTS chain 1", skip=args.pyro_warmup), time.perf_counter()
    found = nuts.run(model, observed, observed.client, progress=clock, chains=1, draws=args.pyro_draws,
                     warmup=args.pyro_warmup)  # fmt: skip
    end = time.perf_counter()
    return Run(flat(found), clock.began - start, end - clock.began)


def by_peer(
    name: Literal["numpyro", "blackjax"], observed: Observation, args: Settings, chains: int, lazy: bool
) -> Run:
    """The same posterior written by hand in JAX (`peers.py`), float32, chains vectorised."""
    import peers

    posterior = peers.build(observed, args.activation, lazy)
    nuts = peers.numpyro_nuts if name == "numpyro" else peers.blackjax_nuts
    return Run(*nuts(posterior, chains, args.peer_warmup, args.peer_draws))


def measure(name: str, chains: int, posterior: str, sampled: Run) -> dict[str, Any]:
    ess = arviz.ess(sampled.draws) / sampled.sampling_s
    total = sampled.draws.shape[1]
    reached, rhat = "", float(np.max(arviz.rhat(sampled.draws))) if chains > 1 else float("nan")
    if rhat < 1.01:
        for part in np.linspace(0.1, 1, 10):
            n = max(8, round(part * total))
            if np.max(arviz.rhat(sampled.draws[:, :n])) < 1.01:
                reached = f"{sampled.warmup_s + sampled.sampling_s * n / total:.1f}"
                break
    return dict(zip(COLUMNS, [
        posterior, name, f"cpu x{os.cpu_count()}", chains, f"{sampled.warmup_s:.1f}", reached, f"{ess.min():.2f}",
        f"{np.median(ess):.2f}", f"{rhat:.4f}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    ], strict=True))  # fmt: skip


def jobs(args: Settings) -> list[tuple[str, int, Callable[[], Run]]]:
    settings: dict[str, Any] = {"activation": args.activation}
    if args.network == "mlp":
        settings["widths"] = args.widths
    protection = Protection.parse(f"gaussian:sigma={args.sigma}")
    scenario = Scenario(args.data, args.data_root, network=Named(args.network, settings), protection=protection)
    believe = functools.partial(attack.believe, programs.load("models", MODEL), beliefs={"prior": args.prior})
    observed, found = observe(scenario), []
    model = believe(observed)
    jax_posterior = (args.prior, args.network) == ("gaussian", "mlp")
    for name in args.samplers:
        if name == "pplleak":
            found.append(("pplleak hmc", args.chains, lambda: pplleak(observed, model, args)))
        elif name == "pyro":
            double = observe(dataclasses.replace(scenario, dtype="float64"))
            found.append(("Pyro NUTS", 1, lambda double=double: pyro_nuts(double, believe(double), args)))
        elif jax_posterior:
            title = "NumPyro" if name == "numpyro" else "BlackJAX"
            for lazy in (False, True) if name == "numpyro" else (True,):
                for chains in args.peer_chains:
                    job = functools.partial(by_peer, name, observed, args, chains, lazy)
                    form = "lazy by hand" if lazy else "materialised"
                    found.append((f"{title} NUTS, {form}, {chains} chains", chains, job))
    return found


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Median effective draws a second of every sampler, a panel a posterior."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    posteriors = list(dict.fromkeys(r["posterior"] for r in rows))
    heights = [sum(r["posterior"] == p for r in rows) for p in posteriors]
    figure, grid = plt.subplots(len(posteriors), 1, sharex=True, squeeze=False, height_ratios=heights,
                                figsize=(8, 0.34 * sum(heights) + 0.55 * len(posteriors) + 0.8))  # fmt: skip
    for axes, posterior in zip(grid[:, 0], posteriors, strict=True):
        chosen = sorted((r for r in rows if r["posterior"] == posterior), key=lambda r: float(r["ess_per_s_median"]))
        speeds = [float(r["ess_per_s_median"]) for r in chosen]
        names = [r["sampler"] for r in chosen]
        colours = ["#c8553d" if n.startswith("pplleak") else "#5c6b8a" for n in names]
        axes.scatter(speeds, names, color=colours, s=36, zorder=2)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(axis="x", color="#dddddd", zorder=0)
        for k, (row, speed) in enumerate(zip(chosen, speeds, strict=True)):
            reached = row["seconds_to_rhat_1.01"]
            note = f"{speed:,.0f} a second" + (f"; R-hat < 1.01 after {float(reached):.0f} s" if reached else "")
            axes.text(speed * 1.15, k, note, va="center", fontsize=7.5)
        axes.set_title(posterior, fontsize=8.5, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xscale("log")
    grid[-1, 0].set_xlim(right=grid[-1, 0].get_xlim()[1] * 3)
    grid[-1, 0].set_xlabel("effective draws a second (median over pixels), log scale", fontsize=8)
    figure.tight_layout()
    runs.figure(path, figure, dpi=130, bbox_inches="tight")


def main(args: Settings) -> None:
    network = f"{args.network}{args.widths if args.network == 'mlp' else ''}"
    posterior = f"{args.data} {args.prior} {network} {args.activation} sigma {args.sigma:g}"
    table = runs.Rows(args.csv, COLUMNS, ("posterior", "sampler"))
    new: list[dict[str, Any]] = []
    for name, chains, job in jobs(args):
        torch.manual_seed(0)
        new.append(measure(name, chains, posterior, job()))
        print(new[-1], flush=True)
        picture(table.add(new), args.csv.with_suffix(".png"))
    best = float(new[0]["ess_per_s_median"])
    for row in new[1:]:
        times = best / float(row["ess_per_s_median"])
        print(f"{new[0]['sampler']} / {row['sampler']}: {times:.1f} times its median ESS/s")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
