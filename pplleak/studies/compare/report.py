"""A comparison's files for people: the averages, and a picture of quality, honesty and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pplleak import runs
from pplleak.studies.compare import compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY, BLUE = "#8a8a8a", "#1f6feb"


def write(rows: Sequence[Mapping[str, Any]], inferences: Sequence[str], out: Path) -> None:
    """compare.json (means, standard errors, paired differences) and compare.png."""
    means: dict[str, dict[str, Any]] = {}
    paired_all = compare.against(rows, inferences)
    for name in inferences:
        means[name] = {}
        for column in compare.NUMBERS:
            found = compare.average(rows, name, column)
            means[name][column] = None if found is None else {
                "mean": found[0], "se": None if math.isnan(found[1]) else found[1], "count": found[2]
            }  # fmt: skip
        means[name]["paired"] = paired_all[name]
    runs.json(out / "compare.json", means)
    runs.figure(out / "compare.png", picture(rows, inferences), dpi=150)


def picture(rows: Sequence[Mapping[str, Any]], inferences: Sequence[str]) -> Figure:
    """Quality, honesty and cost: a dot an image, a bar the mean ± standard error."""
    from matplotlib.figure import Figure

    panels = (
        (
            "quality: PSNR of the reconstruction (dB)",
            (("psnr_map", "MAP", GREY), ("psnr_mean", "posterior mean", BLUE)),
            None,
        ),
        ("honesty: true pixels inside their 90 % interval", (("coverage_90", "", BLUE),), 0.9),
        ("cost: seconds an image", (("seconds", "", BLUE),), None),
    )
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    count = len({r["index"] for r in rows})
    figure.suptitle(
        f"MAP against the full posterior, {count} image{'s' * (count > 1)}",
        fontsize=11,
        weight="bold",
        x=0.01,
        ha="left",
    )
    for axes, (title, series, line) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.set_title(title, fontsize=9, loc="left")
        for s, (column, label, colour) in enumerate(series):
            for k, name in enumerate(inferences):
                place = k + (s - (len(series) - 1) / 2) * 0.28
                values = [r[column] for r in rows if r["inference"] == name and r[column] is not None]
                found = compare.average(rows, name, column)
                if found is None:
                    axes.text(place, 0.5, "none: a point\nhas no interval", ha="center", va="center", fontsize=7,
                              color=GREY, transform=axes.get_xaxis_transform())  # fmt: skip
                    continue
                axes.plot(
                    np.full(len(values), place) + np.linspace(-0.05, 0.05, len(values)),
                    values,
                    "o",
                    ms=4,
                    alpha=0.45,
                    color=colour,
                )
                axes.errorbar(place, found[0], yerr=None if math.isnan(found[1]) else found[1], fmt="_", ms=18, mew=2.2,
                              capsize=4, color=colour, label=label if label and k == 0 else None)  # fmt: skip
        if line is not None:
            axes.axhline(line, color="#1a7f37", lw=1, ls="--")
            axes.text(
                0.01,
                line,
                " should be 90 %",
                ha="left",
                va="bottom",
                fontsize=7.5,
                color="#1a7f37",
                transform=axes.get_yaxis_transform(),
            )
            axes.set_ylim(0, 1.05)
        if title.startswith("cost"):
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.07))
        axes.set_xticks(range(len(inferences)), inferences)
        axes.set_xlim(-0.6, len(inferences) - 0.4)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
