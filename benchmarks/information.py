"""How many bits does one gradient carry? Estimates against the closed form, and against the noise of the channel.

    uv run benchmarks/information.py

For each σ: the mutual information I(x; g | y) of 8x8 images and their gradient, as `pplleak bits` estimates it (the
mean gain over draws from the model, `laplace`): of the linear-Gaussian model behind softmax regression, where it is
known, and of digits under the Gaussian prior behind the default perceptron. A σ that the CSV holds is not run again;
`cpu_seconds` are those of one thread. Writes benchmarks/results/information.csv and information.png.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure

from pplleak import runs
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.models import linear_gaussian
from pplleak.posterior import information
from pplleak.programs import MODEL
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack import attack
from pplleak.studies.risk import risk

COLUMNS = [
    "model",
    "network",
    "sigma",
    "draws",
    "bits",
    "bits_se",
    "exact",
    "relative_error",
    "converged",
    "cpu_seconds",
]
SIGMAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
PROGRAMS = {"gaussian": f"{MODEL}:prior=gaussian"}  # what the table calls a model, where that is not its name
QUICK = {"starts": 1, "steps": 1, "chains": 1, "draws": 50}  # one Newton step ends at the mode of a Gaussian
FULL = {"starts": 4, "steps": 200, "chains": 1, "draws": 1000}


@dataclasses.dataclass(frozen=True)
class Settings:
    linear: int = 100
    """Draws of the linear-Gaussian model at each σ."""
    digits: int = 20
    """Draws of the digits at each σ."""
    csv: Path = Path("benchmarks/results/information.csv")


def measure(model: str, network: str, sigma: float, draws: int, settings: dict[str, Any]) -> dict[str, Any]:
    protection = Protection.parse(f"gaussian:sigma={sigma}")
    base = observe(Scenario("digits", network=Named(network), protection=protection, dtype="float64"))
    program = PROGRAMS.get(model, model)
    start, gains, good, exact = time.process_time(), [], 0, None
    for draw in bar(f"{model}, sigma {sigma:g}", draws):
        observed = risk.from_model(base, program, {}, draw)
        found = attack.attack(observed, program, "laplace", settings=settings, seed=draw).whole()
        gains.append(found.attrs["bits"])
        good += found.converged
    if model == "linear_gaussian":
        known = linear_gaussian.exact_posterior(observed.client, observed, sigma=sigma)
        exact = known.mutual_information / information.LN2
    estimate = information.mutual_information(gains)
    return dict(zip(COLUMNS, [
        model, network, f"{sigma:g}", draws, f"{estimate.value:.4g}", f"{estimate.se:.2g}",
        "" if exact is None else f"{exact:.4g}", "" if exact is None else f"{estimate.value / exact - 1:+.4f}", good,
        f"{time.process_time() - start:.0f}",
    ], strict=True))  # fmt: skip


def picture(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(6.6, 4.1), layout="constrained")
    axes = figure.subplots()
    for model, colour, label in (("linear_gaussian", "#333333", "linear-Gaussian, softmax regression: estimated"),
                                 ("gaussian", "#1f6feb", "digits, default perceptron: estimated")):  # fmt: skip
        mine = [r for r in rows if r["model"] == model]
        if not mine:
            continue
        x = [float(r["sigma"]) for r in mine]
        errors = [2 * float(r["bits_se"]) for r in mine]
        if model == "linear_gaussian":
            axes.plot(x, [float(r["exact"]) for r in mine], color="#8a8a8a", lw=1.5, label="the same: closed form")
        else:
            axes.plot(x, [float(r["bits"]) for r in mine], color=colour, lw=1, alpha=0.5)
        axes.errorbar(
            x, [float(r["bits"]) for r in mine], yerr=errors, fmt="o", ms=5, color=colour, capsize=3, label=label
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("σ: noise on every entry of the gradient", fontsize=9)
    axes.set_ylabel("bits about the image, of 64 pixels", fontsize=9)
    axes.set_title("What one shared gradient says about an 8×8 image", fontsize=10.5, weight="bold", loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.csv, COLUMNS, ("model", "sigma"))
    rows = table.read()
    for model, network, draws, settings in (("linear_gaussian", "linear", args.linear, QUICK),
                                            ("gaussian", "mlp", args.digits, FULL)):  # fmt: skip
        for sigma in SIGMAS:
            if any((r["model"], r["sigma"]) == (model, f"{sigma:g}") for r in rows):
                continue
            rows = table.add([measure(model, network, sigma, draws, settings)])
            print(rows[-1], flush=True)
    runs.figure(args.csv.with_suffix(".png"), picture(rows), dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
