"""The leaderboard of a sweep: defences in the order of what their strongest adversary sees, beside what they cost.

At every step of training, the *leak* of a defence is the mean PSNR of the adversary whose mean is highest. That one is
chosen with the truth in hand, which can only flatter adversaries. What is paid is the accuracy of the network that was
trained without a defence, less that of the one behind it, at the same step.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pplleak.studies.attack.report import INK
from pplleak.studies.defend.defend import COLUMNS, Row
from pplleak.studies.defend.report import CEILING, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BOARD = ("rank", "strongest", *COLUMNS, "accuracy_paid")
PICTURE = "leaderboard.png"
SHOWN = {
    "rank": "rank", "name": "defence", "attack": "strongest adversary", "leak": "what it sees, dB",
    "blind": "a guess without the gradient, dB", "claimed": "what its paper's attack sees, dB",
    "gap": "less than without a defence, dB (paired)", "accuracy": "accuracy", "paid": "accuracy paid", "epsilon": "ε",
    "bits": "bits", "seconds": "CPU s an attack", "images": "images",
}  # fmt: skip


def board(cells: Sequence[Row]) -> list[Row]:
    """A row of BOARD for each defence, step and adversary: by step, then by rank, the strongest adversary first.

    rank: 1 hides most from its strongest adversary. strongest: whether this row's adversary is that one.
    accuracy_paid: None where no network was trained without a defence, or its accuracy at this step is not known.
    """
    made: list[Row] = []
    for step in sorted({c["step"] for c in cells}):
        groups: dict[str, list[Row]] = {}
        for c in sorted((c for c in cells if c["step"] == step), key=lambda c: -c["psnr_mean"]):
            groups.setdefault(label(c), []).append(c)
        free = next((g[0]["accuracy"] for g in groups.values() if g[0]["defence"] == "none"), None)
        for rank, group in enumerate(sorted(groups.values(), key=lambda g: g[0]["psnr_mean"]), 1):
            for c in group:
                paid = None if free is None or c["accuracy"] is None else free - c["accuracy"]
                made.append({**c, "rank": rank, "strongest": c is group[0], "accuracy_paid": paid})
    return made


def picture(rows: Sequence[Row]) -> Figure:
    """A panel a step: how much the strongest adversary sees of each defence, against the accuracy that is paid for it
    after the last step; an arrow from what its paper's own attack sees."""
    from matplotlib.figure import Figure

    steps, last = sorted({r["step"] for r in rows}), max(r["step"] for r in rows)
    paid = {label(r): 100 * r["accuracy_paid"] for r in rows if r["step"] == last and r["accuracy_paid"] is not None}
    names = {name: k for k, name in enumerate(sorted(paid, key=lambda n: paid[n]), 1)}
    figure = Figure(figsize=(4.4 * len(steps) + 3.2, 4.9), layout="constrained")
    panels = figure.subplots(1, len(steps) + 1, squeeze=False, width_ratios=[*[4.4] * len(steps), 2.6])[0]
    for axes, step in zip(panels, steps, strict=False):
        mine, seen = [r for r in rows if r["step"] == step and label(r) in names], []
        for r in (r for r in mine if r["strongest"]):
            own = next((o for o in mine if label(o) == label(r) and o["attack"] == "own"), r)
            x, y, claimed = paid[label(r)], min(r["psnr_mean"], CEILING), min(own["psnr_mean"], CEILING)
            axes.annotate("", (x, y), (x, claimed), arrowprops={"arrowstyle": "->", "color": "#bbbbbb"})
            axes.update_datalim([(x, claimed)])
            axes.errorbar(x, y, r["psnr_se"] or 0, fmt="o", ms=4.5, color="#1f6feb", capsize=2, lw=1)
            seen.append((x, y, names[label(r)]))
        for x, y, text in numbered(seen):
            axes.annotate(text, (x, y), xytext=(5, 2), textcoords="offset points", fontsize=7)
        blind = [r["psnr_blind"] for r in rows if r["step"] == step and r["strongest"]]
        axes.axhline(sum(blind) / len(blind), color=INK, ls=":", lw=1)
        axes.set_title(f"weights after {step} steps", fontsize=9, loc="left", color=INK)
        axes.set_xlabel(f"accuracy paid after {last} steps, percentage points", fontsize=8)
        axes.tick_params(labelsize=7.5)
        axes.margins(0.08)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("PSNR of the strongest adversary, dB (± standard error)", fontsize=8)
    panels[-1].set_axis_off()
    panels[-1].text(0, 1, "\n".join(f"{k}  {name}" for name, k in names.items()), va="top", fontsize=7.5, color=INK,
                    transform=panels[-1].transAxes)  # fmt: skip
    images, highest = max(r["images"] for r in rows), max(r["psnr_mean"] for r in rows)
    count = f"{images} image{'s' * (images > 1)}"
    above = f" {CEILING:g} dB stand for all above." * (highest > CEILING)
    figure.suptitle(
        f"Protection that is left, against accuracy that is paid: low and to the left is best ({rows[0]['dataset']}, "
        f"{rows[0]['network']}, {count})\nArrows begin at what the attack of the defence's own paper sees. At "
        f"the dotted line nothing is learnt of the image.{above}", fontsize=9, x=0.01, ha="left", color=INK,
    )  # fmt: skip
    return figure


def numbered(points: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, str]]:
    """Where the numbers of points (x, y, number) are written: those that would overlap in one text, two a line."""
    if not points:
        return []
    wide, high = (0.05 * (max(side) - min(side)) for side in list(zip(*points, strict=True))[:2])
    groups: list[list[tuple[float, float, int]]] = []
    for x, y, number in sorted(points):
        near = (g for g in groups if x - g[-1][0] <= wide and abs(y - g[-1][1]) <= high)
        if (group := next(near, None)) is None:
            groups.append(group := [])
        group.append((x, y, number))
    lines = [[", ".join(str(n) for *_, n in pair) for pair in itertools.batched(g, 2)] for g in groups]
    return [(*g[-1][:2], ",\n".join(text)) for g, text in zip(groups, lines, strict=True)]


def page(rows: Sequence[Row], command: str) -> str:
    """The HTML page: the figure, which lies beside it, and a table a step, a line a defence."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Leaderboard of defences</title><style>body{font:"
        f"15px/1.5 system-ui,sans-serif;color:{INK};max-width:75rem;margin:2rem auto;padding:0 1rem}}table{{border-"
        "collapse:collapse;font-size:13px}td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
        "td:nth-child(2),th:nth-child(2),td:nth-child(3),th:nth-child(3){text-align:left}img{max-width:100%}</style>"
        "<h1>What each defence hides from its strongest adversary</h1>"
        f"<img alt='PSNR of the strongest adversary against accuracy paid' src='{PICTURE}'>"
    ]
    for step in sorted({r["step"] for r in rows}):
        mine = [r for r in rows if r["step"] == step]
        head = "".join(f"<th>{html.escape(h)}</th>" for h in SHOWN.values())
        lines = [_line(r, next((o for o in mine if label(o) == label(r) and o["attack"] == "own"), None))
                 for r in mine if r["strongest"]]  # fmt: skip
        parts.append(f"<h2>Weights after {step} steps</h2><table><tr>{head}</tr>{''.join(lines)}</table>")
    parts.append(
        "<p>Mean ± standard error over the images. The strongest adversary is chosen with the truth in hand, which "
        "flatters it; one that did not converge understates a leak. No attack proves that none is stronger.</p>"
        f"<p>Made by <code>{html.escape(command)}</code></p></html>"
    )
    return "".join(parts)


def _line(r: Row, own: Row | None) -> str:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    def with_error(mean: float | None, se: float | None) -> str:
        return number(mean, ".1f") + ("" if mean is None or se is None else f" ± {se:.1f}")

    values = {
        "rank": str(r["rank"]), "name": label(r), "attack": f"{r['attack']} ({r['model']})",
        "leak": with_error(r["psnr_mean"], r["psnr_se"]), "blind": number(r["psnr_blind"], ".1f"),
        "claimed": "–" if own is None else with_error(own["psnr_mean"], own["psnr_se"]),
        "gap": with_error(None if r["gap_mean"] is None else -r["gap_mean"], r["gap_se"]),
        "accuracy": number(r["accuracy"], ".1%"), "paid": number(r["accuracy_paid"], "+.1%"),
        "epsilon": number(r["epsilon"], ".3g"), "bits": number(r["bits"], ".0f"),
        "seconds": number(r["cpu_seconds"], ".1f"), "images": str(r["images"]),
    }  # fmt: skip
    return "<tr>" + "".join(f"<td>{html.escape(values[name])}</td>" for name in SHOWN) + "</tr>"
