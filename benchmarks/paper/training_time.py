"""Where in training does it leak? PSNR and risk of the best adversary against the training step, per defence strength.

    uv run benchmarks/paper/training_time.py --data-root ROOT --quick
    uv run benchmarks/paper/training_time.py --data-root ROOT --images 20

The paper's CNN (ReLU) at the start and after plain SGD; one image's gradient, its label known, Gaussian noise of σ on
every entry. The adversary's prior is a VAE; its decisions are the MAP and the posterior mean.
Beside them: the network's accuracy, the size ‖u‖ of the gradient, and `no_gradient`, the label's mean public image.

Writes training_time_images.csv (a row an image and decision), training_time.csv, .md and .png. A leak is a PSNR of at
least `leak` dB; `risk` is the share of images without one. `seconds` are CPU seconds of one thread.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attacks
import network
import numpy as np
import study
import torch
from attacks import Effort
from matplotlib import colormaps
from matplotlib.figure import Figure

from pplleak import markdown, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.settings import Named
from pplleak.studies.risk.risk import interval

CELL = ("dataset", "network", "step", "sigma")
KEY = (*CELL, "decision", "index")
IMAGE = (
    *KEY,
    "psnr",
    "ssim",
    "seconds",
    "accuracy",
    "norm",
    "coverage_90",
    "psnr_claimed",
    "rhat_max",
    "khat",
    "acceptance",
)
SUMMARY = (*CELL, "decision", "images", "accuracy", "norm", "norm_median", "psnr_mean", "psnr_se", "risk",
           "risk_low", "risk_high", "delta_vs_map", "delta_vs_map_se", "delta_vs_no_gradient",
           "delta_vs_no_gradient_se", "coverage_90", "rhat_max", "khat", "acceptance", "seconds")  # fmt: skip
AGAINST = {"mean": ("map", "no_gradient"), "map": ("no_gradient",)}  # decision -> what it is compared with
GREY = "#8a8a8a"
THOROUGH = Effort(steps=500, starts=4, screened=256)  # one climb is not enough on trained weights: `attacks.climb`


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run.

    steps: of SGD. sigmas: the defence strengths. leak: the PSNR, in dB, that counts as a leak.
    quick: ten images, two steps, one σ; written to files of their own.
    """

    data_root: Path | None = None
    dataset: str = "mnist"
    network: str = "convnet"
    steps: tuple[int, ...] = (0, 10, 100, 1000)
    sigmas: tuple[float, ...] = (0.3, 0.1, 0.03)
    images: int = 20
    leak: float = 17.0
    quick: bool = False
    workers: int = 2
    effort: Effort = THOROUGH
    out: Path = study.RESULTS

    @property
    def name(self) -> str:
        return "training_time" + "_quick" * self.quick


def observed_of(args: Settings, step: int, sigma: str, index: int) -> Observation:
    return observe(
        Scenario(
            args.dataset, args.data_root, index, network=Named(args.network), noise_seed=index,
            checkpoint=network.checkpoint(args.dataset, args.data_root, step) if step else None,
            protection=Protection.parse(f"gaussian:sigma={sigma}"),
        )
    )  # fmt: skip


def attacked(job: study.Job, args: Settings) -> list[study.Row]:
    """One image at one step behind one σ; `decision` is in the rows."""
    _, _, step, sigma, _, index = job
    observed = observed_of(args, step, sigma, index)
    with torch.no_grad():
        norm = float(observed.client.update(observed.truth, observed.labels).sqnorm().sqrt())
    rows, _ = attacks.bayes(observed, "vae", 0.1, [], args.effort, index)
    rows.append(attacks.no_gradient(observed, args.data_root))
    right = network.accuracy(args.dataset, step)
    return [{**row, "accuracy": right, "norm": norm} for row in attacks.decided(rows)]


def summarise(rows: Sequence[Mapping[str, str]], args: Settings) -> list[study.Row]:
    """A row for each step, σ and decision."""
    groups = study.grouped(rows, (*CELL, "decision"))
    made: list[study.Row] = []
    for key, mine in groups.items():
        psnr = study.by_image(mine)
        row: dict[str, Any] = {**dict(zip((*CELL, "decision"), key, strict=True)), "images": len(mine)}
        row["psnr_mean"], row["psnr_se"] = study.mean_se(psnr.values())
        missed = sum(v < args.leak for v in psnr.values())
        row["risk"], (row["risk_low"], row["risk_high"]) = missed / len(psnr), interval(missed, len(psnr))
        row["norm_median"] = float(np.median([float(r["norm"]) for r in mine]))
        for other in AGAINST.get(key[4], ()):
            gap = study.paired(psnr, study.by_image(groups.get((*key[:4], other), ())))
            if gap:
                row[f"delta_vs_{other}"], row[f"delta_vs_{other}_se"] = gap
        row |= study.means(mine, ("accuracy", "norm", "coverage_90", "rhat_max", "khat", "acceptance", "seconds"))
        made.append(row)
    return made


def picture(rows: Sequence[study.Row], leak: float) -> Figure:
    """PSNR over what is known without the gradient, the risk, and the accuracy, against the step; a line a σ."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    best = [r for r in rows if r["decision"] == "mean"]
    steps = sorted({int(r["step"]) for r in best})
    sigmas = sorted({r["sigma"] for r in best}, key=float)
    for k, (shade, sigma) in enumerate(zip(np.linspace(1, 0.4, len(sigmas)), sigmas, strict=True)):
        colour = colormaps["Blues"](shade)
        mine = {int(r["step"]): r for r in best if r["sigma"] == sigma}
        found = [mine[s] for s in steps if s in mine]
        at = [steps.index(int(r["step"])) + 0.06 * (k - (len(sigmas) - 1) / 2) for r in found]  # bars side by side
        gains, errors = ([r.get(f"delta_vs_no_gradient{e}", 0.0) for r in found] for e in ("", "_se"))
        left.errorbar(at, gains, errors, marker="o", color=colour, capsize=3, label=f"noise σ = {sigma}")
        risk = np.array([r["risk"] for r in found])
        errors = [risk - [r["risk_low"] for r in found], [r["risk_high"] for r in found] - risk]
        middle.errorbar(at, risk, errors, marker="o", color=colour, capsize=3)
    left.axhline(0, color=GREY, lw=1)
    left.set(title="What the gradient adds", ylabel="PSNR over no gradient, dB")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncol=len(sigmas), frameon=False)
    middle.set(title="Risk of the mean (bars: 95 %)", ylabel=f"share of images below {leak:g} dB", ylim=(-0.03, 1.03))
    accuracy = {int(r["step"]): r["accuracy"] for r in best}
    right.plot(range(len(steps)), [accuracy[s] for s in steps], marker="o", color=GREY)
    right.set(title="The network meanwhile", ylabel="accuracy on private images", ylim=(-0.03, 1.03))
    for axis in (left, middle, right):
        axis.set(xlabel="SGD steps", xticks=range(len(steps)), xticklabels=[str(s) for s in steps])
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def report(args: Settings) -> None:
    rows = summarise(study.read(args.out / f"{args.name}_images.csv"), args)
    if not rows:
        return
    rows.sort(key=lambda r: (int(r["step"]), -float(r["sigma"])))  # a run may add an earlier step
    study.write(args.out / f"{args.name}.csv", SUMMARY, rows)
    runs.figure(args.out / f"{args.name}.png", picture(rows, args.leak), dpi=110)
    runs.text(args.out / f"{args.name}.md", table(rows))


def table(rows: Sequence[study.Row]) -> str:
    """A row for each step and σ: what each decision is worth, and how far the posterior is to be trusted."""
    head = ["SGD steps", "accuracy", "‖u‖, median", "σ", "images", "no gradient", "MAP", "posterior mean ≈",
            "− own MAP", "− no gradient", "risk", "in 90 %", "R-hat", "k-hat"]  # fmt: skip
    lines = []
    for cell, every in study.grouped(rows, ("step", "sigma")).items():
        mine = {r["decision"]: r for r in every}
        mean = mine["mean"]
        lines.append([
            str(cell[0]), f"{mean['accuracy']:.1%}", f"{mean['norm_median']:.2g}", str(cell[1]), str(mean["images"]),
            *(study.said(mine[d]["psnr_mean"], mine[d]["psnr_se"]) for d in ("no_gradient", "map", "mean")),
            *(study.said(mean[c], mean[f"{c}_se"], sign=True) for c in ("delta_vs_map", "delta_vs_no_gradient")),
            f"{mean['risk']:.2f}", f"{mean['coverage_90']:.1%}",
            *("–" if mean[c] is None else f"{mean[c]:.1f}" for c in ("rhat_max", "khat")),
        ])  # fmt: skip
    return markdown.table([head, *lines]) + "\n"


def main(args: Settings) -> bool:
    torch.set_num_threads(1)
    if args.quick:
        args = dataclasses.replace(args, steps=(0, 100), sigmas=(0.1,), images=10)
    study.settle(args, ("effort",))
    for step in args.steps:
        network.checkpoint(args.dataset, args.data_root, step)
    scored, _ = study.images(args.dataset, args.data_root, args.images, 3)
    jobs = [
        (args.dataset, args.network, step, f"{sigma:g}", "mean", index)
        for index in scored
        for step in args.steps
        for sigma in args.sigmas
    ]
    images = args.out / f"{args.name}_images.csv"
    whole = study.run("training", jobs, functools.partial(attacked, args=args), images, IMAGE, KEY, args.workers)
    report(args)
    return whole


if __name__ == "__main__":
    study.command(main, Settings, __doc__)
