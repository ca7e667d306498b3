"""The experiments' figures: PSNR with its standard error, a row a cell or prior, a colour a kind of attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import study
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
LOOKS = {  # attack -> label, colour, marker
    "l2": ("L2 + TV", "#bdbdbd", "s"),
    "l1": ("L1 + TV", "#969696", "D"),
    "cosine": ("cosine + TV", "#636363", "^"),
    "no_gradient": ("no gradient: mean of the label's public images", "#d95f02", "|"),
    "map": ("Bayes: MAP", "#9ecae1", "o"),
    "ball": ("Bayes: δ-ball ≈", "#4292c6", "o"),
    "mean": ("Bayes: posterior mean ≈", "#08306b", "o"),
}


def dots(rows: Rows, attack: str, panel: str, line: str, titles: Mapping[str, str]) -> Figure:
    """One panel for each value of the column `panel`, a line in it for each of `line` that it has, a dot for each of
    `attack`.

    The panels stand below each other and share their dB, so that they can be compared.

    Args:
        titles: what a panel is called, by its value.
    """
    panels = {value: mine for (value,), mine in study.grouped(rows, (panel,)).items()}
    lines = {p: list(dict.fromkeys(str(r[line]) for r in mine if r[line] != "none")) for p, mine in panels.items()}
    heights = [len(held) + 0.2 for held in lines.values()]
    figure = Figure(figsize=(8.5, 1.2 + sum(0.7 + 0.45 * h for h in heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    handles: dict[str, Any] = {}
    for axis, (value, mine) in zip(axes, panels.items(), strict=True):
        known = [r for r in mine if r[line] == "none"]
        for r in known:  # what holds for all lines stands behind them all
            _, colour, _ = LOOKS[r[attack]]
            axis.axvspan(r["psnr_mean"] - r["psnr_se"], r["psnr_mean"] + r["psnr_se"], color=colour, alpha=0.15, lw=0)
            handles[r[attack]] = axis.axvline(r["psnr_mean"], color=colour, lw=1.2)
        for r in (r for r in mine if r[line] != "none"):
            _, colour, marker = LOOKS[r[attack]]
            shift = 0.07 * (list(LOOKS).index(r[attack]) - 3)
            handles[r[attack]] = axis.errorbar(
                r["psnr_mean"], lines[value].index(str(r[line])) + shift, xerr=r["psnr_se"], fmt=marker, color=colour,
                ms=11 if marker == "|" else 5.5, mew=2 if marker == "|" else 0.5, lw=1,
            )  # fmt: skip
        count = len(lines[value])
        axis.set(yticks=range(count), yticklabels=lines[value], ylim=(count - 0.4, -0.6))
        axis.set_title(titles[value], loc="left")
        axis.grid(axis="x", color="#eeeeee")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("PSNR, dB (mean ± standard error)")
    order = [a for a in LOOKS if a in handles]
    figure.legend([handles[a] for a in order], [LOOKS[a][0] for a in order], loc="outside lower center", ncol=3,
                  frameon=False)  # fmt: skip
    return figure
