"""What a person sees of the risk: one picture and one table an inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pplleak import runs
from pplleak.studies.risk import limits
from pplleak.studies.risk.limits import Limits
from pplleak.studies.risk.risk import Distance, Row, curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "mean": "posterior mean",
    "medoid": "medoid (most central draw)",
    "mode": "most probable image (MAP)",
    "ball": "δ-ball centre",
}
RED = " Red: what no adversary can do; triangle: this one's average error."
BLUE, INK, GREY, BAD = "#1f6feb", "#333333", "#8a8a8a", "#b42318"


def table(rows: Sequence[Row], inference: str) -> Table:
    """claimed / realised of every decision at every δ; red where the claim lies outside the realised's interval."""
    points = [c for c in curves(rows) if c["inference"] == inference]
    images = points[0]["images"]
    mine = {(r["index"], r["converged"]) for r in rows if r["inference"] == inference}
    good = sum(converged for _, converged in mine)
    made = Table(
        title=f"{Path(inference).stem}: successes, claimed / realised of {images} images",
        title_justify="left",
        padding=(0, 0, 0, 1),
        caption="red: the claim is outside the realised fraction's 95 % interval; "
        f"{good} of {len(mine)} attacks converged",
        caption_justify="left",
    )
    names = list(dict.fromkeys(c["decision"] for c in points))
    for name in ("δ", *names):
        made.add_column(name, justify="right", no_wrap=True)
    for delta in sorted({c["delta"] for c in points}):
        at = {c["decision"]: c for c in points if c["delta"] == delta}
        made.add_row(f"{delta:g}", *(_cell(at[n]) for n in names))
    return made


def _cell(curve: Row) -> Text:
    if curve["claimed"] is None:
        return Text(f"– / {curve['realised']:.0%}")
    return Text(f"{curve['claimed']:.0%} / {curve['realised']:.0%}", "" if curve["agrees"] else "red")


def write(
    rows: Sequence[Row], distance: Distance, drawn_from: str, bound: Limits | None, out: Path, console: Console
) -> None:
    """The tables and the distance to the bounds onto the terminal, risk.png into `out`."""
    for name in dict.fromkeys(r["inference"] for r in rows):
        console.print(table(rows, name))
    for line in [] if bound is None else limits.sentences(bound, rows, distance):
        console.print(line, highlight=False, soft_wrap=True)
    runs.figure(out / "risk.png", picture(rows, distance, drawn_from, bound), dpi=150)


def picture(rows: Sequence[Row], distance: Distance, drawn_from: str, bound: Limits | None = None) -> Figure:
    """A panel for each adversary: what it claims (line), what happened (dots with 95 % intervals), and what no
    adversary can do (red), where a bound is known."""
    from matplotlib.figure import Figure

    points = curves(rows)
    pairs = list(dict.fromkeys((c["inference"], c["decision"]) for c in points))
    pixels = bound.van_trees.pixels if bound and bound.van_trees else 1
    errors = limits.realised_rms(rows, distance, pixels)
    wide = min(len(pairs), 3)
    deep = -(-len(pairs) // wide)
    width = max(6.4, 3.4 * wide)
    figure = Figure(figsize=(width, 2.75 * deep + 1.45), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.95 / figure.get_figheight()), h_pad=0.08)  # type: ignore
    grid = figure.subplots(deep, wide, squeeze=False, sharex=True, sharey=True)
    for k, axes in enumerate(grid.flat):
        if k >= len(pairs):
            axes.set_visible(False)
            continue
        mine = sorted((c for c in points if (c["inference"], c["decision"]) == pairs[k]), key=lambda c: c["delta"])
        if bound is not None:
            _forbid(axes, bound, errors.get(pairs[k]), distance)
        _panel(axes, mine, f"{Path(pairs[k][0]).stem}: {CAPTIONS[pairs[k][1]]}")
        if k + wide >= len(pairs):
            axes.set_xlabel(distance.caption, fontsize=8.5, color=INK)
            axes.tick_params(labelbottom=True)
        if k % wide == 0:
            axes.set_ylabel("share of images", fontsize=8.5, color=INK)
    count = len({r["index"] for r in rows})
    source = ("images drawn from the model: line and dots must agree" if drawn_from == "model" else
              "real images: a line above its dots is an adversary who believes too much")  # fmt: skip
    lines = [
        ("How often does a reconstruction come within δ of the private image?", 10.5, "bold"),
        (f"Dots: how often it did, {count} observation{'s' * (count > 1)}, with 95 % intervals. "
         "Line: how often its adversary expects it to.", 8.5, "normal"),
        (source[0].upper() + source[1:] + "." + (RED if bound else ""), 8.5, "normal"),
    ]  # fmt: skip
    for n, (text, size, weight) in enumerate(lines):
        height = 1 - (0.22 + 0.25 * n) / figure.get_figheight()
        figure.text(0.012, height, text, fontsize=size, weight=weight, color=INK, va="center")
    return figure


def _forbid(axes: Any, bound: Limits, error: tuple[float, float] | None, distance: Distance) -> None:
    """ReRo as a red area above the success, van Trees as the least root-mean-square error on the axis of δ."""
    if bound.success:
        deltas = sorted(bound.success)
        axes.fill_between(deltas, [bound.success[d] for d in deltas], 1.04, color=BAD, alpha=0.12, lw=0)
        axes.plot(deltas, [bound.success[d] for d in deltas], color=BAD, lw=1.2, label="no adversary above (ReRo)")
    if bound.van_trees is not None and distance.name in ("rms", "l2"):
        scale = 1.0 if distance.name == "rms" else math.sqrt(bound.van_trees.pixels)
        axes.axvline(scale * bound.van_trees.rms, color=BAD, lw=1.2, ls=":", label="no average error left of it")
        if error is not None:
            axes.plot(scale * error[0], -0.02, "^", ms=7, color=INK, clip_on=False, zorder=6)


def _panel(axes: Any, mine: Sequence[Row], title: str) -> None:
    x = [c["delta"] for c in mine]
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    if mine[0]["claimed"] is None:
        axes.text(
            0.03, 0.93, "a point: it claims nothing", fontsize=7.5, color=GREY, transform=axes.transAxes, va="top"
        )
    else:
        axes.plot(x, [c["claimed"] for c in mine], color=BLUE, lw=1.8, label="claimed")
    errors = [[c["realised"] - c["low"] for c in mine], [c["high"] - c["realised"] for c in mine]]
    axes.errorbar(x, [c["realised"] for c in mine], yerr=errors, fmt="o", ms=4, capsize=2.5, lw=1, color=INK,
                  label="realised")  # fmt: skip
    outside = [c for c in mine if c["agrees"] is False]
    if outside:
        axes.plot([c["delta"] for c in outside], [c["realised"] for c in outside], "o", ms=4, color=BAD, zorder=5,
                  label="claim outside the interval")  # fmt: skip
    axes.set_ylim(-0.04, 1.04)
    axes.legend(fontsize=7, loc="best", framealpha=0.8, edgecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
