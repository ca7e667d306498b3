"""What a person sees of a calibration: the table with its verdict, the picture, the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from pplleak import runs
from pplleak.studies.attack.report import BAD, GOOD, INK
from pplleak.studies.calibration import calibration, uniformity
from pplleak.studies.calibration.calibration import CHECKS
from pplleak.studies.calibration.draws import LEVELS, QUANTITIES, Draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = "calibration.json"
BLUE, GREY = "#1f6feb", "#8a8a8a"
CAPTIONS = {"narrow": "sd × 0.75", "shifted": "mean + 0.25 sd"}
COLOURS = {"": BLUE, "narrow": BAD, "shifted": "#b7791f"}
LINES = ("#1f6feb", "#1a7f37", "#8250df", "#b7791f", "#333333")


def verdict(summary: Mapping[str, Any]) -> str:
    """One line: is it calibrated, and would these draws have shown if it were not?"""
    judged = summary["verdict"]
    missed = [CAPTIONS[t] for t, v in summary["twins"].items() if v["word"] == "calibrated"]
    sentence = (
        f"{judged['word']}: p = {judged['p']:.2g} over {len(summary['checks'])} checks, {summary['draws']} truths"
    )
    if judged["word"] == "calibrated":
        sentence += (f"; too few to see {' or '.join(missed)}" if missed else
                     f"; wrong twins ({', '.join(CAPTIONS.values())}) are rejected")  # fmt: skip
    if summary["converged"] < summary["draws"]:
        sentence += f"; {summary['draws'] - summary['converged']} attacks did not converge"
    return sentence


def sure(summary: Mapping[str, Any]) -> bool:
    """Calibrated, and the wrong twins are not."""
    words = [v["word"] for v in summary["twins"].values()]
    return summary["verdict"]["word"] == "calibrated" and "calibrated" not in words


def table(summary: Mapping[str, Any], title: str) -> Table:
    """The summary as a terminal table."""
    shown = Table(title=title, title_justify="left", show_header=False)
    shown.add_row("truths drawn from the model", f"{summary['draws']} ({summary['converged']} attacks converged)")
    for row in summary["coverage"]:
        shown.add_row(f"inside their {row['level']:.0%} interval",
                      f"{row['inside']:.1%} ({row['low']:.1%} to {row['high']:.1%})")  # fmt: skip
    error = summary["squared_error"]
    shown.add_row("squared error, realised / expected", f"{error['ratio']:.3f} ± {error['se']:.3f}")
    for check in summary["checks"]:
        shown.add_row(f"p: {CHECKS[check['name']]}", f"{check['p']:.2g}")
    for twin, judged in summary["twins"].items():
        shown.add_row(f"wrong twin, {CAPTIONS[twin]}", f"{judged['word']} (p = {judged['p']:.2g})")
    for name, label, form in (("rhat_max", "worst R-hat", "{:.4f}"), ("khat", "median k-hat", "{:.2f}"),
                              ("psnr_mean", "PSNR of the posterior mean", "{:.2f} dB"),
                              ("seconds", "CPU seconds a posterior", "{:.1f}")):  # fmt: skip
        if summary[name] is not None:
            shown.add_row(label, form.format(summary[name]))
    colour = "green" if sure(summary) else "yellow" if summary["verdict"]["word"] == "calibrated" else "bold red"
    shown.add_section()
    shown.add_row("verdict", f"[{colour}]{verdict(summary)}[/]")
    return shown


def write(draws: Sequence[Draw], settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """calibration.json and calibration.png, and the summary that they show."""
    summary = calibration.summarise(draws)
    runs.json(out / SUMMARY, {"settings": dict(settings), "verdict_line": verdict(summary), **summary})
    title = f"{settings['model']} × {settings['inference']}, {settings['data']}"
    runs.figure(out / "calibration.png", picture(draws, summary, title), dpi=150)
    return summary


def picture(draws: Sequence[Draw], summary: Mapping[str, Any], title: str) -> Figure:
    """Four panels: ranks of the pixels, ranks of the summaries, coverage, squared error; with the wrong twins."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(13.5, 4.6), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 0.83)))
    lines = [
        (f"Does the posterior know how much it does not know?  {title}", 10.5, "bold", INK),
        (f"{len(draws)} truths were drawn from the model, and each was ranked in the posterior computed from its "
         "gradient. In a right posterior every rank is equally frequent.", 8.5, "normal", INK),
        (verdict(summary)[0].upper() + verdict(summary)[1:] + ".", 9, "bold",
         GOOD if sure(summary) else BAD if summary["verdict"]["word"] != "calibrated" else INK),
    ]  # fmt: skip
    for k, (text, size, weight, colour) in enumerate(lines):
        figure.text(0.008, 0.965 - 0.055 * k, text, fontsize=size, weight=weight, color=colour, va="center")
    pixels, others, coverage, error = figure.subplots(1, 4)
    _pixels(pixels, draws)
    _summaries(others, draws)
    _coverage(coverage, draws)
    _error(error, draws, summary)
    for axes in (pixels, others, coverage, error):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_size(8.5), axes.yaxis.label.set_size(8.5)
    return figure


def _difference(axes: Any, u: np.ndarray, **style: Any) -> None:
    """ECDF(t) − t of u (N,), as a step at every value."""
    t = np.repeat(np.r_[0, np.sort(u), 1], 2)[1:-1]
    axes.plot(t, np.repeat(np.arange(len(u) + 1) / len(u), 2) - t, **style)


def _band(axes: Any, count: int, level: float, label: str) -> None:
    t, low, high = uniformity.band(count, level)
    axes.fill_between(t, low - t, high - t, color=GREY, alpha=0.22, lw=0, label=label)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xlabel("rank of the truth, 0 lowest, 1 highest")


def _pixels(axes: Any, draws: Sequence[Draw]) -> None:
    count = draws[0].ranks.shape[1] - len(QUANTITIES)
    axes.set_title("pixels: too many low or high ranks?", fontsize=9, loc="left", color=INK)
    _band(axes, len(draws), 1 - 0.05 / count, f"95 % band of all {count} pixels")
    grid = np.linspace(0, 1, 101)
    for twin, colour in COLOURS.items():
        u = calibration.pit(draws, twin)[:, :count]
        curves = (u[:, :, None] <= grid).mean(0) - grid
        if not twin:
            shown = np.linspace(0, count - 1, min(count, 100)).astype(int)
            axes.plot(grid, curves[shown].T, color=GREY, lw=0.4, alpha=0.5)
        axes.plot(grid, curves.mean(0), color=colour, lw=2 if not twin else 1.4, ls="-" if not twin else "--",
                  label="mean over pixels" if not twin else f"the same, had it been {CAPTIONS[twin]}")  # fmt: skip
    axes.set_ylabel("ECDF − uniform")
    axes.legend(fontsize=7, frameon=False, loc="upper right")
    top = max(abs(v) for v in axes.get_ylim())
    axes.set_ylim(-top, 1.75 * top)


def _summaries(axes: Any, draws: Sequence[Draw]) -> None:
    axes.set_title("whole images: the same for five numbers", fontsize=9, loc="left", color=INK)
    _band(axes, len(draws), 0.95, "95 % band of each")
    u = calibration.pit(draws)[:, -len(QUANTITIES) :]
    for k, (label, colour) in enumerate(zip(QUANTITIES.values(), LINES, strict=True)):
        if not np.isnan(u[:, k]).any():
            _difference(axes, u[:, k], color=colour, lw=1.2, label=label)
    axes.legend(fontsize=7, frameon=False, loc="upper right")
    top = max(abs(v) for v in axes.get_ylim())
    axes.set_ylim(-top, 2.1 * top)


def _coverage(axes: Any, draws: Sequence[Draw]) -> None:
    axes.set_title("intervals: how many true pixels are inside?", fontsize=9, loc="left", color=INK)
    for twin, colour in COLOURS.items():
        rows = calibration.coverage(draws, twin)
        level, inside = [r["level"] for r in rows], [r["inside"] for r in rows]
        if twin:
            axes.plot(level, inside, "x", color=colour, ms=6, label=f"had it been {CAPTIONS[twin]}")
            continue
        ends = [[r["inside"] - r["low"] for r in rows], [r["high"] - r["inside"] for r in rows]]
        axes.errorbar(level, inside, yerr=ends, fmt="o", color=colour, ms=5, capsize=3, label="truths, 95 % interval")
    axes.plot([0.3, 1], [0.3, 1], color=INK, lw=0.8)
    axes.set_xticks(LEVELS, [f"{level:.0%}" for level in LEVELS], rotation=45)
    axes.set_yticks(LEVELS, [f"{level:.0%}" for level in LEVELS])
    axes.set_xlim(0.4, 1.0), axes.set_ylim(min(0.4, axes.get_ylim()[0]), 1.0)
    axes.set_xlabel("interval"), axes.set_ylabel("true pixels inside")
    axes.legend(fontsize=7, frameon=False, loc="upper left")


def _error(axes: Any, draws: Sequence[Draw], summary: Mapping[str, Any]) -> None:
    axes.set_title("error: expected and made", fontsize=9, loc="left", color=INK)
    expected, realised = (np.sqrt([getattr(d, n) for d in draws]) for n in ("expected", "realised"))
    axes.plot(expected, realised, "o", color=BLUE, ms=3.5, alpha=0.5, label="a truth")
    error = summary["squared_error"]
    axes.plot(error["expected"] ** 0.5, error["realised"] ** 0.5, "D", color=INK, ms=6,
              label=f"mean: squared error {error['ratio']:.2f} ± {error['se']:.2f} of the expected")  # fmt: skip
    both = np.r_[expected, realised]
    ends = [0.95 * both.min(), 1.03 * both.max()]
    axes.plot(ends, ends, color=INK, lw=0.8)
    axes.set_xlim(*ends), axes.set_ylim(ends[0], ends[1] + 0.2 * (ends[1] - ends[0]))
    (
        axes.set_xlabel("expected error of a pixel (posterior sd, RMS)"),
        axes.set_ylabel("error of the posterior mean (RMS)"),
    )
    axes.legend(fontsize=7, frameon=False, loc="upper left")
