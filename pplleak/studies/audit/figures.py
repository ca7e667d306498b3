"""The report's drawings: SVG that stands in the page, in the page's own colours, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pplleak.errors import printable
from pplleak.studies.audit import curves, frontier
from pplleak.studies.audit.counted import THINGS
from pplleak.studies.audit.curves import DELTAS, Group, Guess
from pplleak.studies.audit.frontier import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, LINE = "#010203", "#010204", "#010205"  # stand for colours that the page gives
BLUE, RED, GREY = "#010206", "#010207", "#010208"
COLOURS = {SOFT: "soft", LINE: "line", BLUE: "link", RED: "away", GREY: "open"}  # of the page's style sheet
PANELS = 3  # groups that are drawn


def risk(found: Sequence[Group], guessed: Guess | None) -> str:
    """Share of private examples within δ, a panel for each protection; "" where there is nothing to draw."""
    shown = list(found)[:PANELS]
    if not shown:
        return ""
    figure = _figure(max(5.0, 3.3 * len(shown) + 0.4), 3.1)
    for axes, group in zip(np.atleast_1d(figure.subplots(1, len(shown), sharey=True)), shown, strict=True):
        at = np.array([group.realised(d) for d in DELTAS])
        axes.fill_between(DELTAS, at[:, 1], at[:, 2], color=BLUE, alpha=0.18, lw=0)
        axes.plot(DELTAS, at[:, 0], "o-", color=BLUE, lw=1.6, ms=3.5, label=f"attack: {_text(group.attack)}")
        if guessed is not None:
            kappa = guessed.at(group.known)
            axes.plot(DELTAS, [v for v, _ in kappa], "--", color=GREY, lw=1.3, label="best guess without the update")
            limits = [group.limit(upper) for _, upper in kappa]
            if group.noise is not None:
                axes.plot(DELTAS, np.array(limits, float), color=RED, lw=1.6, label="no attack exceeds this")
        axes.set_xscale("log")
        axes.set_xticks(DELTAS[::2], [f"{d:g}" for d in DELTAS[::2]])
        axes.set_xticks([], minor=True)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("within this RMS error of a pixel")
        axes.set_title(f"{_text(group.name)}, n = {len(group.errors)}", fontsize=9, loc="left", color=INK)
        axes.legend(fontsize=7.5, frameon=False, loc="upper left", labelcolor=INK)
    figure.axes[0].set_ylabel("share of private examples")
    return _svg(figure, "risk", "Share of private examples that an attack brings back within an error, its 95 % "
                "interval, beside what a guess reaches and what no attack exceeds; the numbers are below.")  # fmt: skip


def privacy(found: Sequence[Group], guessed: Guess | None) -> str:
    """ε of one step of DP-SGD against the share of examples within `curves.NEAR`: bound, and realised."""
    private = [g for g in found if g.noise is not None]
    if not private or guessed is None:
        return ""
    at = [(curves.epsilon(g.noise or 1.0), *g.realised(curves.NEAR)) for g in private]
    low, high = min(0.3, *(e for e, *_ in at)) * 0.7, max(30.0, *(e for e, *_ in at)) * 1.5
    grid = np.geomspace(max(low, 0.05), high, 40)
    figure = _figure(5.4, 3.1)
    axes = figure.subplots()
    known = any(g.known for g in private)
    value, upper = guessed.at(known)[DELTAS.index(curves.NEAR)]
    noises = [curves.noise(e) for e in grid]
    axes.plot(grid, [curves.rero.gaussian(upper, z) for z in noises], color=RED, lw=1.6, label="no attack exceeds this")
    axes.axhline(value, ls="--", color=GREY, lw=1.3, label="best guess without the update")
    for e, share, lo, hi in at:
        axes.errorbar(e, share, yerr=[[share - lo], [hi - share]], fmt="o", ms=4.5, color=BLUE, capsize=3, lw=1.2)
    axes.plot([], [], "o", ms=4.5, color=BLUE, label="realised by the attacks, 95 % interval")
    axes.set_xscale("log")
    ticks = [t for t in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if grid[0] <= t <= grid[-1]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("ε of the one step, at δ = 1e-5 (less is more private)")
    axes.set_ylabel(f"share within {curves.NEAR:g} RMS")
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", labelcolor=INK)
    return _svg(figure, "privacy", "The ε of one step of DP-SGD against the share of examples that come back: what no "
                "attack exceeds, and what the attacks realised.")  # fmt: skip


def tradeoff(found: Sequence[Point]) -> str:
    """What is left for learning against what attacks see."""
    unit = next((p.unit for p in found if p.unit), "")
    scale = 100 if unit else 1  # shares of a guess's errors, or dB
    drawn = [(p.name, p.left, scale * p.gain, scale * (p.error or 0.0)) for p in found
             if p.gain is not None and p.left is not None]  # fmt: skip
    if len(drawn) < 2:
        return ""
    figure = _figure(6.6, 3.6)
    axes = figure.subplots()
    edge = [(p.left or 0.0, scale * (p.gain or 0.0)) for p in frontier.best(found)]
    trained = all(p.accuracy is not None for p in found)
    axes.plot(*zip(*edge, strict=True), color=SOFT, lw=1, ls=":", zorder=1)
    axes.axhline(0, color=GREY, lw=1, ls="--")
    guess = f" a guess from public {THINGS.get(unit, 'image')}s"
    axes.text(0.005, 0, guess, transform=axes.get_yaxis_transform(), fontsize=7.5, va="bottom",
              color=GREY)  # fmt: skip
    middle = float(np.mean([left for _, left, _, _ in drawn])) if trained else 0.6
    for name, left, gain, error in drawn:
        plain = name == frontier.RECORDED
        axes.errorbar(left, gain, yerr=error, fmt="D" if plain else "o", ms=5, capsize=3, lw=1.1,
                      color=RED if plain else BLUE)  # fmt: skip
        leftwards = left > middle
        axes.annotate(_text(name), (left, gain), xytext=(-7 if leftwards else 7, 5), textcoords="offset points",
                      ha="right" if leftwards else "left", fontsize=7.5, color=INK)  # fmt: skip
    if trained:
        axes.set_xlabel("accuracy after the training behind it")
        axes.xaxis.set_major_formatter("{x:.0%}")
    else:
        axes.set_xlim(min(0.0, *(left for _, left, _, _ in drawn)) - 0.03, 1.04)
        axes.set_xlabel("what is left of the update: its cosine to what the client computed (1: unharmed)")
    axes.set_ylabel("a guess's errors that attacks are without (%)" if unit else "attack above a guess (dB)")
    seen = f"the share of a guess's errors in {unit} that attacks are without" if unit else (
        "how much nearer than a guess attacks come")  # fmt: skip
    return _svg(figure, "frontier", f"What each protection leaves of the {'accuracy' if trained else 'update'} "
                f"against {seen}; the numbers are below.")  # fmt: skip


def _text(words: str) -> str:
    """Words from elsewhere, for matplotlib: no mathematics."""
    return printable(words, 44).replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an element of the page: its words stay words, its ids are its own, its colours are the page's."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for axes in figure.axes:
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        for spine in axes.spines.values():
            spine.set_color(SOFT)
        axes.tick_params(colors=INK, labelsize=8, which="both")
        axes.xaxis.label.set(color=INK, fontsize=8.5)
        axes.yaxis.label.set(color=INK, fontsize=8.5)
        axes.grid(color=LINE, lw=0.6)
        axes.set_axisbelow(True)
    figure.patch.set_visible(False)
    made = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "axes.unicode_minus": False}):
        FigureCanvasSVG(figure).print_svg(made, metadata=nothing)
    drawn = made.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\bid="', f'id="{name}-', drawn)
    drawn = re.sub(r'(url\(|href=")#', rf"\1#{name}-", drawn)
    drawn = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", drawn)
    drawn = drawn.replace(INK, "currentColor")
    for stands, colour in COLOURS.items():
        drawn = drawn.replace(stands, f"var(--{colour})")
    least = round(0.7 * 96 * figure.get_figwidth())  # px: what can still be read; narrower screens scroll
    said = f'role="img" aria-label="{label}" class="drawn" style="min-width: {least}px"'
    return drawn.replace("<svg ", f"<svg {said} ", 1)
