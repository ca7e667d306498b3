"""What a person sees of an attack on records: their cells on the terminal, in cells.csv and in a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pplleak import runs
from pplleak.data.columns import MISSING, Columns
from pplleak.errors import printable
from pplleak.posterior import Posterior, cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 3  # records on the terminal and in full in the picture
LETTERS = 28  # of a value
FIELDS = ("record", "column", "truth", "estimate", "probability", "interval", "right")
GOOD, BAD, INK, PALE = "#1a7f37", "#b42318", "#333333", "#e8e8e8"
ROWS = {
    "cell_accuracy": ("cells that are right", "{:.1%}"),
    "guess_accuracy": ("cells that a guess without the gradient has right", "{:.1%}"),
    "exact_match": ("records that are right in every cell", "{:.0%}"),
    "cell_probability": ("probability that a cell is right, as claimed", "{:.1%}"),
    "calibration_error": ("how far claims are from what is right", "{:.3f}"),
    "chance_exact": ("chance that a record is right in every cell", "{:.1%}"),
    "expected_right": ("right cells of a record, expected", "{:.1f}"),
}


def _short(value: object, most: int) -> str:
    """Words from a file, on one line, at most so long."""
    said = printable(value)
    return said if len(said) <= most else f"{said[: most - 1]}…"


def kinds(columns: Columns) -> Table:
    """The columns of a table, what kind each was taken for, and what a cell may hold."""
    shown = Table(title="columns, as they were read", title_justify="left")
    for name in ("column", "kind", "may hold", "missing"):
        shown.add_column(name)
    for c in columns.columns:
        if c.kind == "categorical":
            few = ", ".join(_short(v, 20) for v in c.values[:3])
            holds = f"{len(c.values)} categories: {few}{', …' if len(c.values) > 3 else ''}"
        elif c.kind == "constant":
            holds = f"always {_short(c.values[0], LETTERS) if c.values else MISSING}: nothing to learn"
        else:
            holds = f"{c.words(c.low)} to {c.words(c.high)}" + (f", {len(c.values)} values" if c.kind == "grid" else "")
        shown.add_row(Text(_short(c.name, LETTERS)), c.kind, Text(holds), "some" if c.missing else "")
    return shown


def table(rows: list[dict[str, Any]]) -> Table:
    """The cells of the first records."""
    count = 1 + max(r["record"] for r in rows)
    title = "what the gradient says of each cell" + (f" ({SHOWN} of {count} records)" if count > SHOWN else "")
    shown = Table(title=title, title_justify="left")
    has_truth = rows[0]["truth"] is not None
    for name in ("column", *(("truth",) if has_truth else ()), "estimate", "probability", "90 % interval"):
        shown.add_column(name)
    for row in rows:
        if row["record"] >= SHOWN:
            break
        style = {True: "green", False: "bold red", None: ""}[row["right"]]
        said = "–" if row["probability"] is None else f"{row['probability']:.0%}"
        shown.add_row(
            Text(_short(row["column"], LETTERS)),
            *((Text(_short(row["truth"], LETTERS)),) if has_truth else ()),
            Text(_short(row["estimate"], LETTERS), style), said, Text(row["interval"]),
            end_section=row["column"] == rows[-1]["column"],
        )  # fmt: skip
    return shown


def write(posterior: Posterior, columns: Columns, out: Path) -> list[dict[str, Any]]:
    """cells.csv into `out`; its rows."""
    rows = cells.rows(posterior, columns)
    runs.table(out / "cells.csv", rows, FIELDS)
    return rows


def picture(posterior: Posterior, summary: dict[str, Any], columns: Columns, heading: str, said: str) -> Figure:
    """A record a panel (at most SHOWN): each cell with its truth, its estimate and a bar for how sure that is, green
    where it is right, red where not.

    Args:
        heading: what was attacked. said: the verdict.
    """
    from matplotlib.figure import Figure

    rows = cells.rows(posterior, columns)
    count, width = min(SHOWN, len(posterior.mode)), len(columns.varying)
    lines = textwrap.wrap(said, 118)
    height = 0.24 * (width + 1.6) * count + 1.1 + 0.2 * len(lines)
    figure = Figure(figsize=(9.5, height))
    truth = rows[0]["truth"] is not None
    places = {"column": 0.0, "truth": 0.24, "estimate": 0.44, "bar": 0.64, "interval": 0.83}
    figure.text(0.02, 1 - 0.22 / height, heading, fontsize=10.5, color=INK, weight="bold", va="center")
    share = "" if summary["cell_accuracy"] is None else (
        f"{summary['cell_accuracy']:.0%} of the cells are right" + (
            "" if summary["guess_accuracy"] is None else
            f"; a guess that saw no gradient has {summary['guess_accuracy']:.0%}") + ".  ")  # fmt: skip
    share += "Right: the category itself, or within a tenth of the column's range."
    figure.text(0.02, 1 - 0.45 / height, share, fontsize=8.5, color=INK, va="center")
    panel = 0.24 * (width + 1.6) / height
    for b in range(count):
        axes = figure.add_axes((0.02, 1 - 0.6 / height - (b + 1) * panel, 0.96, panel))
        axes.set_xlim(0, 1), axes.set_ylim(width + 0.6, -1), axes.axis("off")
        titles = {"column": f"record {b + 1}", "truth": "truth" if truth else "", "estimate": "estimate"}
        if posterior.kind != "point":
            titles |= {"bar": "how sure", "interval": "90 % interval"}
        for name, title in titles.items():
            axes.text(places[name], -0.3, title, fontsize=8, color="#666666", va="center", parse_math=False)
        for j, row in enumerate(rows[b * width : (b + 1) * width]):
            colour = {True: GOOD, False: BAD, None: INK}[row["right"]]
            at = j + 0.6
            for name, ink in (("column", INK), ("truth", INK), ("estimate", colour), ("interval", INK)):
                text = _short("" if row[name] is None else row[name], 24)
                axes.text(places[name], at, text, fontsize=8.5, color=ink, va="center", parse_math=False)
            if row["probability"] is not None:
                axes.barh(at, 0.13, 0.5, places["bar"], color=PALE)
                axes.barh(at, 0.13 * row["probability"], 0.5, places["bar"], color=colour)
                axes.text(places["bar"] + 0.14, at, f"{row['probability']:.0%}", fontsize=8, color=INK, va="center")
    figure.text(0.02, 0.2 * len(lines) / height + 0.06 / height, "\n".join(lines), fontsize=9, weight="bold", va="top",
                linespacing=1.3, color={True: GOOD, None: "#666666", False: BAD}[summary["trusted"]])  # fmt: skip
    return figure
