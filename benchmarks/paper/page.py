"""Writes docs/map-or-posterior.md and its figure from page.md and the experiments' CSVs, however far they have come.

uv run benchmarks/paper/page.py
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import attacks
import exact
import noise_defences
import numpy as np
import stronger_priors
import study
import training_time
from matplotlib.figure import Figure
from pictures import LOOKS

from pplleak import markdown, runs
from pplleak.federation.scenario import build_client

DOCS = study.RESULTS.parents[1] / "docs"
TEMPLATE = Path(__file__).with_suffix(".md")
CELL = ("dataset", "network", "step", "defence", "mask_known")
FIRST = ("mnist", "convnet", "0", "gaussian", "")  # the cell that the page looks at closely
FEW, OPEN, LEVEL = 5, "not yet to be compared with", "not told apart from"
FAR = 0.7  # a k-hat above it says that the draws are not the posterior's (Vehtari et al. 2024)
FIGURES = {
    "stronger_priors": "PSNR of MAP and posterior mean under every prior",
    "training_time": "PSNR over no gradient, risk, and accuracy, against the training step",
}
SIGMA = 0.1  # its noise
PHOTOS = "cifar10"

Rows = Sequence[Mapping[str, str]]


def difference(row: Mapping[str, str], column: str, error: str) -> str:
    return study.said(float(row[column]), float(row[error]) if row[error] else None, sign=True) if row[column] else "–"


def verdict(row: Mapping[str, str], column: str, error: str) -> str:
    """`above`, `below` or LEVEL, by two standard errors of the paired difference of at least FEW images."""
    if not row[column] or not row[error] or int(row["images"]) < FEW:
        return OPEN
    gap, se = float(row[column]), float(row[error])
    return LEVEL if abs(gap) <= 2 * se else "above" if gap > 0 else "below"


def close_look(rows: Rows) -> Figure:
    """One cell: how many images each decision reconstructs how well, and what the posterior expected of its mean."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    psnr = {a: np.sort([float(r["psnr"]) for r in rows if r["attack"] == a]) for a in LOOKS}
    for attack, values in psnr.items():
        if len(values) and attack != "ball":
            label, colour, _ = LOOKS[attack]
            left.step(np.r_[values[0] - 1, values], 1 - np.arange(len(values) + 1) / len(values), where="post",
                      color=colour, label=label, lw=2 if attack == "mean" else 1.3)  # fmt: skip
    left.set(xlabel="t, dB", ylabel="share of images with PSNR ≥ t", title="Success at every threshold (1 − risk)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncol=3, frameon=False, fontsize=8)
    mean = [r for r in rows if r["attack"] == "mean"]
    claimed, real = (np.array([float(r[c]) for r in mean]) for c in ("psnr_claimed", "psnr"))
    low, high = min(claimed.min(), real.min()) - 0.5, max(claimed.max(), real.max()) + 0.5
    right.plot([low, high], [low, high], color="#bdbdbd", lw=1)
    right.scatter(claimed, real, s=14, color=LOOKS["mean"][1])
    right.set(xlabel="PSNR that the posterior expects of its mean, dB", ylabel="PSNR of the mean, dB",
              title="Honesty: on the line, it knows how good it is", xlim=(low, high), ylim=(low, high))  # fmt: skip
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def cells(rows: Rows) -> str:
    """The table of defences: a row a cell."""
    head = ["data", "SGD steps", "defence", "images", "no gradient", "best baseline", "MAP", "posterior mean ≈",
            "− best baseline", "− own MAP", "in 90 %", "k-hat"]  # fmt: skip
    lines = []
    for cell in dict.fromkeys(tuple(r[c] for c in CELL) for r in rows):
        mine = {r["attack"]: r for r in rows if tuple(r[c] for c in CELL) == cell}
        if not {"mean", "map", "no_gradient"} <= set(mine):
            continue
        mean = mine["mean"]
        best = mine.get(mean["best_baseline"])
        defence = cell[3].replace("_", " + ") + (f", mask {cell[4]}" if cell[4] else "")

        def quality(row: Mapping[str, str] | None) -> str:
            return study.said(float(row["psnr_mean"]), float(row["psnr_se"] or "nan")) if row else "–"

        lines.append([
            cell[0], cell[2], defence, mean["images"], quality(mine["no_gradient"]),
            f"{quality(best)} ({mean['best_baseline']})" if best else "–", quality(mine["map"]), quality(mean),
            difference(mean, "delta_vs_best_baseline", "delta_se"),
            difference(mean, "delta_vs_map", "delta_vs_map_se"),
            f"{float(mean['coverage_90']):.1%}", f"{float(mean['khat']):.2f}" if mean["khat"] else "–",
        ])  # fmt: skip
    return markdown.table([head, *lines])


def verdicts(rows: Rows) -> str:
    """In how many cells the mean is above its own MAP by two standard errors of the paired difference."""
    found = [verdict(r, "delta_vs_map", "delta_vs_map_se") for r in rows if r["attack"] == "mean"]
    others = "" if found.count("above") == len(found) else f", below it in {found.count('below')}"
    return (f"By two standard errors of the paired difference the mean is above its own MAP in {found.count('above')} "
            f"of {len(found)} rows{others}.")  # fmt: skip


def exactly(images: Rows) -> dict[str, str]:
    """What the exact chains say of the first cell and of a trained network, and how they cover where the truth is drawn
    from the prior."""
    rows = study.read(study.RESULTS / f"{exact.Settings.name}_images.csv")
    mine = [r for r in rows if tuple(r[c] for c in CELL[:3]) == FIRST[:3] and r["sampler"] == "billiard"]
    drawn = [r for r in study.read(study.RESULTS / "coverage.csv")
             if (r["inference"], r["network"], float(r["sigma"])) == ("billiard", FIRST[1], SIGMA)]  # fmt: skip
    late = [r for r in rows if (r["dataset"], r["network"], r["step"], r["sampler"]) == (*FIRST[:2], "1000", "auto")]
    by = {name: [r for r in late if r["drawn_by"] == name] for name in ("elliptical", "billiard")}
    covered = study.mean_se(float(r["coverage_90"]) for r in drawn)
    said = {f"{whose}_{name}": value for whose, of in (("ex", mine), *by.items())
            for name, value in exact.facts(of, images).items()}  # fmt: skip
    return {
        **said,
        "drawn_coverage": study.percent(*covered),
        "exact": (study.RESULTS / "exact.md").read_text().rstrip(),
    }


def facts(summary: Rows, images: Rows) -> dict[str, str]:
    """How far the softened chains of the cell that the page looks at closely are to be trusted."""
    mean = next(r for r in summary if tuple(r[c] for c in CELL) == FIRST and r["attack"] == "mean")
    close = [r for r in images if tuple(r[c] for c in CELL) == FIRST]
    drawn = [r for r in close if r["attack"] == "mean"]
    near = {r["index"] for r in drawn if float(r["khat"]) <= FAR}
    psnr = {a: study.by_image([r for r in close if r["attack"] == a]) for a in ("mean", "map")}
    rhats = [float(r["rhat_max"] or "inf") for r in drawn]
    effort = attacks.Effort()
    return {
        "far": f"{len(drawn) - len(near)} of {len(drawn)}",
        "over_map_near": gained({i: v for i, v in psnr["mean"].items() if i in near}, psnr["map"]),
        "chains": f"{effort.chains} chains of {effort.draws} draws after {effort.warmup} of warm-up",
        "mixed": f"{sum(r <= 1.01 for r in rhats)} of {len(rhats)}",
        "rhats": f"{min(rhats):.2f} to {max(rhats):.2f}",
        "seconds_mean": f"{float(mean['seconds']):.1f}",
    }


def compared() -> tuple[str, str]:
    """What `pplleak compare` found where chains converge, of every results/compare_PRIOR_SIGMA.csv: a row each; and the
    largest difference between mean and MAP."""
    gaps = []
    lines = [["prior", "σ", "images", "MAP, dB", "posterior mean, dB", "− own MAP", "wins", "in 90 %", "worst R-hat"]]
    for path in sorted(study.RESULTS.glob("compare_*.csv")):
        _, prior, sigma = path.stem.split("_")
        rows = study.read(path)
        columns = {c: {r["index"]: float(r[c]) for r in rows} for c in ("psnr_map", "psnr_mean", "coverage_90")}
        gap = study.paired(columns["psnr_mean"], columns["psnr_map"])
        assert gap
        gaps.append(gap)
        wins = sum(columns["psnr_mean"][i] > columns["psnr_map"][i] for i in columns["psnr_map"])
        lines.append([
            f"`{prior}`", sigma, str(len(rows)), *(study.said(*study.mean_se(columns[c].values()))
            for c in ("psnr_map", "psnr_mean")), study.said(*gap, sign=True), f"{wins} of {len(rows)}",
            f"{study.mean_se(columns['coverage_90'].values())[0]:.1%}",
            f"{max(float(r['rhat_max']) for r in rows):.3f}",
        ])  # fmt: skip
    return markdown.table(lines), study.said(*max(gaps), sign=True)


def gained(one: Mapping[str, float], other: Mapping[str, float]) -> str:
    """The paired difference of two decisions over the images that both have, as the page prints it."""
    gap = study.paired(one, other)
    return study.said(*gap, sign=True) if gap else "–"


def means(rows: Rows, prior: str) -> dict[str, float]:
    """PSNR of the posterior mean under a prior at the first noise, by image."""
    return study.by_image([r for r in rows if (r["sigma"], r["decision"], r["prior"]) == (str(SIGMA), "mean", prior)])


def worth(rows: Rows) -> dict[str, str]:
    """How much the posterior mean gains, at the first noise, where one prior takes the place of another."""
    pairs = {"label_gaussian": ("gaussian|y", "gaussian"), "label_mixture": ("mixture|y", "mixture"),
             "vae_gaussian": ("vae", "gaussian")}  # fmt: skip
    return {name: gained(means(rows, one), means(rows, other)) for name, (one, other) in pairs.items()}


def photographs(summary: Rows, images: Rows) -> dict[str, str]:
    """Behind Gaussian noise on CIFAR-10: the posterior mean over the best baseline, under the VAE and a Gaussian."""
    cell = (PHOTOS, *FIRST[1:])
    mean = next(r for r in summary if tuple(r[c] for c in CELL) == cell and r["attack"] == "mean")
    rows = study.read(study.RESULTS / f"{exact.Settings.name}_images.csv")
    mine = [r for r in rows if (r["dataset"], r["sampler"], r["prior"]) == (PHOTOS, "softened", "gaussian")]
    said = {f"ph_{name}": value for name, value in exact.facts(mine, images).items()}
    khat = [float(r["khat"]) for r in mine if r["khat"]]
    return {**said, "ph_khat": f"{min(khat):.1f} to {max(khat):.1f}",
            "photos_vae": difference(mean, "delta_vs_best_baseline", "delta_se")}  # fmt: skip


def trained(rows: Rows) -> dict[str, str]:
    """What large and vanishing gradients give away after 1000 steps, over what is known without them."""
    late = [r for r in rows if r["step"] == "1000" and r["sigma"] == str(SIGMA)]
    known = study.by_image([r for r in late if r["decision"] == "no_gradient"])
    found = {}
    for name, of in (("loud", lambda norm: norm > 10), ("quiet", lambda norm: norm < 0.1)):
        mean = study.by_image([r for r in late if r["decision"] == "mean" and of(float(r["norm"]))])
        found |= {name: str(len(mean)), f"{name}_gap": gained(mean, known)}
    return found


def table(name: str) -> str:
    """The figure and the table that an experiment wrote, or how to get them."""
    path = study.RESULTS / f"{name}.md"
    if not path.exists():
        return "Not run yet:"
    return f"![{FIGURES[name]}](../benchmarks/results/{name}.png)\n\n{path.read_text().rstrip()}"


def main() -> None:
    for script in (noise_defences, exact, stronger_priors, training_time):
        if (study.RESULTS / f"{script.__name__}_images.csv").exists():
            script.report(script.Settings())
    if (study.RESULTS / PHOTOS / "stronger_priors_images.csv").exists():
        stronger_priors.report(stronger_priors.Settings(out=study.RESULTS / PHOTOS))
    client = build_client("convnet", (1, 28, 28), 10)
    summary, images = (study.read(study.RESULTS / f"noise_defences{end}.csv") for end in ("", "_images"))
    close = [r for r in images if tuple(r[c] for c in CELL) == FIRST]
    runs.figure(study.RESULTS / "map_or_posterior.png", close_look(close), dpi=110)
    values = {**facts(summary, images), "cells": cells(summary)}
    values |= {"verdict_line": verdicts(summary), **exactly(images)}
    values["compared"], values["compared_gap"] = compared()
    values["entries"] = f"{client.update_size:,}"
    values["noise_norm"] = f"{SIGMA * client.update_size**0.5:.0f}"
    effort = training_time.THOROUGH
    drawn, steps = (study.read(study.RESULTS / f"{name}_images.csv") for name in ("stronger_priors", "training_time"))
    values |= {**worth(drawn), **trained(steps)}
    values |= {"screened": str(effort.screened), "starts": str(effort.starts), "climb_steps": str(effort.steps)}
    values |= {name: table(name) for name in ("stronger_priors", "training_time")}
    values |= photographs(summary, images)
    runs.text(DOCS / "map-or-posterior.md", string.Template(TEMPLATE.read_text()).substitute(values))


if __name__ == "__main__":
    main()
