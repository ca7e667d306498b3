"""What each layer leaks by itself, in bits: which layers may be shared?

For the parameters S of one layer, g_S the part of the shared update that is theirs, over draws (x, g) from the model

    I(x; g_S) = E [log₂ p(g_S | x) − log₂ p(g_S)]  ≤  I(x; g)          (`pplleak.posterior.information`)

The inequality is that of data processing: who sees a part sees no more than who sees all. The bits of layers do not add
up: two layers may tell the same. All parts are of the same draws, so that their differences are surer than they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pplleak import runs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior import information
from pplleak.progress import ProgressBar, silent
from pplleak.runs import Rows
from pplleak.studies.bits.bits import gained
from pplleak.studies.risk.risk import from_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

Row = dict[str, Any]
ALL = "all layers"
COLUMNS = {"draw": int, "layer": str, "bits": float, "bits_se": float | None, "converged": bool, "seconds": float}
APART = ("gaussian", "laplace")  # channels that treat every entry by itself


def parts(client: Client) -> dict[str, tuple[str, ...]]:
    """The parameters of all layers together, and of each: a layer is a module with its weight and its bias, by its name
    and the shape of the first of them."""
    modules: dict[str, tuple[str, ...]] = {}
    for name in client.layers:
        module = name.rpartition(".")[0] or name
        modules[module] = (*modules.get(module, ()), name)
    shapes = {m: "×".join(map(str, client.layers[names[0]])) for m, names in modules.items()}
    return {ALL: tuple(client.layers), **{f"{m} ({shapes[m]})": names for m, names in modules.items()}}


def alone(observed: Observation, names: Sequence[str]) -> Observation:
    """The observation of a client that shares these parameters and no others, with the same noise.

    Raises:
        BadInput: its channel mixes the entries of an update, so that a part of what was seen is another channel's.
    """
    channel = observed.protection.channel
    if (channel is not None and channel.name not in APART) or observed.protection.defence is not None:
        raise BadInput(f"what a layer leaks alone is known behind a channel that treats every entry by itself "
                       f"({', '.join(APART)}), and no defence, not behind {observed.protection}")  # fmt: skip
    client = observed.client
    kept = {n: shape for n, shape in client.layers.items() if n in names}
    held = (*client.withheld, *(n for n in client.layers if n not in names))
    g = torch.cat([observed.g[client.slices[n]] for n in kept])
    return replace(observed, g=g, client=replace(client, layers=kept, withheld=held))


def measure(
    base: Observation,
    model: str,
    inference: str,
    count: int,
    out: Path,
    *,
    made_with: Mapping[str, Any],
    beliefs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: ProgressBar = silent,
) -> list[Row]:
    """As `pplleak.studies.bits.bits.measure`, of all layers and of each alone; a row a draw and layer in layers.csv."""
    kept = Rows(out / "layers.csv", COLUMNS, ("draw", "layer"))
    runs.settle(out / "layers.json", made_with, under="settings", rows=kept.path)
    layers = parts(base.client)
    rows = [r for r in kept.read() if r["draw"] < count]
    done = {kept.about(r) for r in rows}
    jobs = [(draw, layer) for draw in range(count) for layer in layers]
    try:
        for k in progress("draws and layers", len(jobs)):
            draw, layer = jobs[k]
            if (draw, layer) in done:
                continue
            seen = alone(from_model(base, model, beliefs, seed + draw), layers[layer])
            told = gained(seen, model, inference, beliefs=beliefs, settings=settings, seed=seed + draw)
            row = {"draw": draw, "layer": layer, **told}
            rows.append(row)
            kept.add([row])
    except KeyboardInterrupt:
        if not rows:
            raise
    runs.json(out / "layers.json", {"layers": summarise(rows), "settings": dict(made_with), "rows": rows})
    runs.figure(out / "layers.png", picture(rows), dpi=150)
    return rows


def summarise(rows: Sequence[Row]) -> list[Row]:
    """bits and their se of every layer, its share of what all layers tell, and how many attacks converged: over the
    draws that are complete, where there is one, so that layers are compared on the same."""
    per_draw = Counter(r["draw"] for r in rows)
    rows = [r for r in rows if per_draw[r["draw"]] == max(per_draw.values())]
    made = []
    for layer in dict.fromkeys(r["layer"] for r in rows):
        own = [r for r in rows if r["layer"] == layer]
        estimate = information.mutual_information([r["bits"] for r in own])
        made.append({"layer": layer, "bits": estimate.value, "se": estimate.se, "draws": len(own),
                     "converged": sum(bool(r["converged"]) for r in own)})  # fmt: skip
    whole = next((r["bits"] for r in made if r["layer"] == ALL), None)
    return [{**r, "share": r["bits"] / whole if whole else None} for r in made]


def table(rows: Sequence[Row], pixels: int) -> Table:
    """A line a layer: what it tells alone."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title="what is known of the inputs from one layer alone", title_justify="left")
    for column in ("layer", "bits", "a pixel", "of all layers'", "converged"):
        made.add_column(column, justify="left" if column == "layer" else "right", overflow="fold")
    for r in summarise(rows):
        error = "" if r["se"] is None else f" ± {r['se']:.1f}"
        share = "–" if r["share"] is None else f"{r['share']:.0%}"
        colour = "green" if r["converged"] == r["draws"] else "bold red"
        made.add_row(r["layer"], f"{r['bits']:.1f}{error}", f"{r['bits'] / pixels:.2f}", share,
                     Text(f"{r['converged']} of {r['draws']}", colour))  # fmt: skip
    return made


def picture(rows: Sequence[Row]) -> Figure:
    """A bar a layer, what all of them tell on top."""
    from matplotlib.figure import Figure

    summary = summarise(rows)
    names = [r["layer"] for r in summary]
    width = 5.5 + 0.075 * max(map(len, names))  # room for the names beside the bars
    figure = Figure(figsize=(width, 1.8 + 0.32 * len(summary)), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        names,
        [r["bits"] for r in summary],
        xerr=[2 * (r["se"] or 0.0) for r in summary],
        color=["#444444" if n == ALL else "#d1495b" for n in names],
        error_kw={"ecolor": "#999999", "capsize": 2},
    )
    for k, r in enumerate(summary):
        doubt = "" if r["converged"] == r["draws"] else " (not converged)"
        axes.annotate(f" {r['bits']:.0f}{doubt}", (max(r["bits"], 0), k), va="bottom", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.3)  # and for what is said at their ends
    axes.set_xlim(left=min(0.0, *(r["bits"] for r in summary)))
    axes.set_xlabel("bits about the image, if this layer's\ngradient alone is shared (± 2 standard errors)")
    figure.suptitle(
        "Which layers may be shared? Those with a short bar tell little; bars do not add up", fontsize=10, x=0.01,
        ha="left",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    return figure
