"""A sweep over defences: the table, and the figure *what protects, when, at which cost in accuracy*."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from pplleak.studies.attack.report import INK
from pplleak.studies.defend.defend import ROLES, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "own": ("attack of the defence's own paper", "#8a8a8a", "s"),
    "classic": ("strongest classic attack", "#d97706", "^"),
    "exact": ("quotient of the first layer", "#1a7f37", "D"),
    "knowing": ("Bayes adversary who knows the defence", "#1f6feb", "o"),
}
CEILING = 60.0  # dB: no eye sees an error of a thousandth, and panels that reach further hide what it does see


def label(row: Row) -> str:
    """A defence and its strength, as a person would write them."""
    return f"{row['defence']} {row['strength'].replace(',', ', ')}".strip()


def table(cells: Sequence[Row]) -> Table:
    """One line for each defence and step: PSNR of every adversary and of a guess, share recovered, accuracy, ε."""
    roles = [r for r in ROLES if r in {c["attack"] for c in cells}]
    exact = "exact: the quotient of a fully connected first layer; " * ("exact" in roles)
    made = Table(
        title="PSNR of the reconstruction, dB (mean ± standard error over images)",
        title_justify="left",
        padding=(0, 0, 0, 1),
        caption="own: its paper's attack; classic: the strongest that knows of no defence; knowing: the Bayes "
        f"adversary; {exact}blind: the mean image; recovered: images that the Bayes adversary brought within δ; "
        "ε of DP-SGD",
        caption_justify="left",
    )
    for name in ("defence", "step", *roles, "blind", "recovered", "acc.", "ε"):
        first = name == "defence"
        made.add_column(name, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for name, step in dict.fromkeys((label(c), c["step"]) for c in cells):
        mine = {c["attack"]: c for c in cells if (label(c), c["step"]) == (name, step)}
        any_ = next(iter(mine.values()))
        shown = [_pm(mine[r]["psnr_mean"], mine[r]["psnr_se"]) if r in mine else "–" for r in roles]
        recovered = f"{mine['knowing']['recovered']:.0%}" if "knowing" in mine else "–"
        accuracy = "–" if any_["accuracy"] is None else f"{any_['accuracy']:.0%}"
        spent = "–" if any_["epsilon"] is None else f"{any_['epsilon']:.2g}"
        made.add_row(name, str(step), *shown, f"{any_['psnr_blind']:.1f}", recovered, accuracy, spent)
    return made


def _pm(mean: float, se: float | None) -> str:
    return f"{mean:.1f}" if se is None else f"{mean:.1f}±{se:.1f}"


def picture(cells: Sequence[Row]) -> Figure:
    """A panel a defence: PSNR of every adversary over the steps of training; the last one, protection against cost."""
    from matplotlib.figure import Figure

    highest = max(c["psnr_mean"] for c in cells)
    cells = [c if c["psnr_mean"] < CEILING else {**c, "psnr_mean": CEILING, "psnr_se": None} for c in cells]
    names = list(dict.fromkeys(label(c) for c in cells))
    rows = math.ceil((len(names) + 1) / 4)
    columns = math.ceil((len(names) + 1) / rows)
    figure = Figure(figsize=(3.0 * columns + 0.4, 2.5 * rows + 1.6))
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0.07, right=0.985, top=1 - 1.15 / figure.get_figheight(),
                           bottom=0.85 / figure.get_figheight(), wspace=0.25, hspace=0.55)  # fmt: skip
    values = [c["psnr_mean"] for c in cells] + [c["psnr_blind"] for c in cells]
    limits = (min(values) - 2, max(values) + 2)
    steps = sorted({c["step"] for c in cells})
    bare = {c["step"]: c["psnr_mean"] for c in cells if c["defence"] == "none" and c["attack"] == "knowing"}
    for k, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        _panel(axes, [c for c in cells if label(c) == name], steps, bare, f"{k + 1}. {name}")
        axes.set_ylim(limits)
    _trade(grid.flat[len(names)], cells, names)
    for axes in grid.flat[len(names) + 1 :]:
        axes.set_axis_off()
    first = cells[0]
    images = max(c["images"] for c in cells)
    height = figure.get_figheight()
    figure.text(
        0.015,
        1 - 0.25 / height,
        "What protects, when, at which cost in accuracy",
        fontsize=12,
        weight="bold",
        color=INK,
        va="center",
    )
    caption = (
        f"{first['dataset']}, network {first['network']}, {images} image{'s' * (images > 1)} each. Higher: more of "
        "the private image is seen. At the dotted line an adversary has learnt nothing."
    )
    caption += f" {CEILING:g} dB stand for all above." * (highest > CEILING)
    lines = textwrap.wrap(caption, int(13 * figure.get_figwidth()))
    figure.text(0.015, 1 - 0.43 / height, "\n".join(lines), fontsize=8.5, color=INK, va="top")
    handles, texts = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower left", bbox_to_anchor=(0.01, 0.0), ncols=3, fontsize=8, frameon=False)
    return figure


def _panel(axes: Axes, mine: Sequence[Row], steps: Sequence[int], bare: dict[int, float], name: str) -> None:
    place = {s: k for k, s in enumerate(steps)}
    if bare and mine[0]["defence"] != "none":
        axes.plot([place[s] for s in bare], list(bare.values()), color="#1f6feb", lw=1, ls="--", alpha=0.5)
    for role, (caption, colour, marker) in CAPTIONS.items():
        rows = sorted((c for c in mine if c["attack"] == role), key=lambda c: c["step"])
        if not rows:
            continue
        axes.errorbar(
            [place[c["step"]] for c in rows], [c["psnr_mean"] for c in rows], [c["psnr_se"] or 0 for c in rows],
            color=colour, marker=marker, ms=4.5, lw=1.6, capsize=2.5, label=caption,
        )  # fmt: skip
    blind = [(place[c["step"]], c["psnr_blind"]) for c in mine if c["attack"] == "knowing"]
    axes.plot(*zip(*blind, strict=True), color=INK, lw=1, ls=":", label="the mean image: a guess without a gradient")
    axes.plot([], [], color="#1f6feb", lw=1, ls="--", alpha=0.5, label="Bayes adversary, no defence")
    last = max(mine, key=lambda c: c["step"])
    cost = "" if last["accuracy"] is None else f"accuracy {last['accuracy']:.0%}"
    spent = "" if not last["epsilon"] else f", ε = {last['epsilon']:.2g}"
    axes.set_title(f"{name}\n{cost}{spent} after {last['step']} steps", fontsize=8.5, loc="left", color=INK)
    axes.set_xticks(range(len(steps)), [str(s) for s in steps], fontsize=7.5)
    axes.set_xlabel("step of training", fontsize=7.5)
    axes.set_ylabel("PSNR, dB", fontsize=7.5)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)


def _trade(axes: Axes, cells: Sequence[Row], names: Sequence[str]) -> None:
    """For each defence: what its best adversary ever saw, against the accuracy after the last step."""
    together: dict[tuple[float, float], list[tuple[float, str]]] = {}  # a point -> all that lie there
    for k, name in enumerate(names):
        mine = [c for c in cells if label(c) == name and c["accuracy"] is not None]
        if not mine:
            continue
        x, y = 100 * max(mine, key=lambda c: c["step"])["accuracy"], max(c["psnr_mean"] for c in mine)
        axes.plot(x, y, "o", color=INK, ms=4)
        near = next((p for p in together if abs(p[0] - x) < 4 and abs(p[1] - y) < 2), (x, y))
        together.setdefault(near, []).append((y, str(k + 1)))
    for (x, _), labels in together.items():
        numbers, highest = ", ".join(number for _, number in labels), max(y for y, _ in labels)
        axes.annotate(numbers, (x, highest), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7.5,
                      color=INK)  # fmt: skip
    axes.margins(0.12)
    axes.set_title(
        "all of them, numbered as the panels:\nbest is low and to the right", fontsize=8.5, loc="left", color=INK
    )
    axes.set_xlabel("accuracy after the last step, %", fontsize=7.5)
    axes.set_ylabel("highest PSNR at any step, dB", fontsize=7.5)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
