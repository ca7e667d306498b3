"""What a person sees of an attack: the summary (JSON and a table) and the picture."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pplleak import runs
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, cells, metrics, tokens
from pplleak.posterior.summary import colour, verdict
from pplleak.studies.attack import records, sentences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOOD, BAD, OPEN, INK = "#1a7f37", "#b42318", "#666666", "#333333"
COLOURS = {"good": ("green", GOOD), "open": ("bright_black", OPEN), "bad": ("bold red", BAD)}


ROWS = {
    "psnr_map": ("PSNR of the MAP", "{:.2f} dB"),
    "psnr_mean": ("PSNR of the posterior mean", "{:.2f} dB"),
    "ssim_map": ("SSIM of the MAP", "{:.3f}"),
    "ssim_mean": ("SSIM of the posterior mean", "{:.3f}"),
    "sd_mean": ("mean posterior sd of a pixel", "{:.3f}"),
    "coverage_90": ("true pixels inside their 90 % interval", "{:.1%}"),
    "rhat_max": ("worst R-hat", "{:.4f}"),
    "ess_min": ("smallest effective sample size", "{:.0f}"),
    "khat": ("Pareto k-hat of the approximation", "{:.2f}"),
    "worst_psnr": ("PSNR of the worst example's MAP", "{:.2f} dB"),
    "chi2_per_entry": ("chi² an entry (1 where the model explains g)", "{:.3g}"),
    "chi2_sd": ("its distance from what is expected", "{:+.1f} sd"),
    "signal_to_noise": ("norm of g over that of the noise", "{:.3g}"),
    "sd_ratio": ("posterior sd over prior sd", "{:.2f}"),
    "divergences": ("divergent trajectories", "{:d}"),
    "restarts_nats": ("spread of the restarts, nats", "{:.3g}"),
    "restarts_rms": ("spread of the restarts, a pixel", "{:.3g}"),
    "seconds": ("seconds", "{:.1f}"),
}


def _named(label: str, summary: dict[str, Any]) -> str:
    """A label as this result may wear it: an approximation is never called the posterior, nor its mode the MAP."""
    if not summary["approximation"]:
        return label
    return label.replace("MAP", "approximate MAP").replace("posterior", "approximate")


def table(summary: dict[str, Any]) -> Table:
    """The summary as a terminal table."""
    said = f"{summary['model']} × {summary['inference']}{', approximate' if summary['approximation'] else ''}"
    shown = Table(title=said, title_justify="left", show_header=False)
    own = sentences.ROWS if "token_accuracy" in summary else {}
    for key, (label, form) in {**records.ROWS, **own, **ROWS}.items():
        if summary.get(key) is not None and not (summary["kind"] == "point" and key.endswith("_mean")):  # it is the MAP
            shown.add_row(_named(label, summary), form.format(summary[key]))
    if summary["bits"] is not None:
        error = "" if summary["bits_se"] is None else f" ± {summary['bits_se']:.1g}"
        shown.add_row("information gained about the truth", f"{summary['bits']:.1f}{error} bits")
    if summary.get("recovered_labels"):
        shown.add_row("labels, recovered", _recovered(summary["recovered_labels"]))
    if summary["scale"] is not None:
        shown.add_row("the gradient, in units of the model's", f"{summary['scale']:.3f} ± {summary['scale_se']:.1g}")
    if summary["sigma_interval"]:
        low, high = summary["sigma_interval"]
        shown.add_row("σ, inferred, and its 90 % interval", f"{summary['sigma']:.3g} ({low:.3g} to {high:.3g})")
    for belief in summary.get("priors") or ():
        shown.add_row(
            f"prior {belief['prior']}", f"{belief['weight']:.1%} by its evidence, {belief['log_evidence']:.1f} nats"
        )
    shown.add_section()
    shown.add_row("verdict", Text(verdict(summary), COLOURS[colour(summary)][0]))
    return shown


def _recovered(found: dict[str, Any]) -> Text:
    """The labels of `pplleak.density.label_recovery.recovered`, and what speaks for them."""
    confidence = "no confidence" if found["confidence"] is None else f"confidence {found['confidence']:.3f}"
    right = {True: (", right", ""), False: (", wrong", "bold red"), None: ("", "")}[found["right"]]
    return Text.assemble(f"{' '.join(map(str, found['labels']))} ({found['rule']}; {confidence}", right, ")")


def write(posterior: Posterior, out: Path, console: Console) -> dict[str, Any]:
    """posterior.nc, attack.png and summary.json into `out`, and the table onto the terminal; of records cells.csv, too,
    and what each cell is taken for; of text tokens.csv, and what each token is."""
    posterior.save(out / "posterior.nc")
    columns = cells.columns_of(posterior)
    vocabulary = tokens.vocabulary_of(posterior)
    for earlier in (
        "summary.json",
        "attack.png",
        "cells.csv",
        "tokens.csv",
        "report.html",
    ):  # not this posterior's, should this be interrupted here
        (out / earlier).unlink(missing_ok=True)
    summary = posterior.summary
    runs.json(out / "summary.json", summary)
    runs.figure(out / "attack.png", picture(posterior, summary), dpi=150)
    if columns is not None:
        console.print(records.table(records.write(posterior, columns, out)))
    if vocabulary is not None:
        console.print(sentences.table(sentences.write(posterior, vocabulary, out)))
    console.print(table(summary))
    cells_of = "" if columns is None else ", cells.csv"
    beside = "report.html" + (", tokens.csv" if vocabulary is not None else cells_of)
    console.print(f"written to {out}/: {beside}, attack.png, posterior.nc, summary.json", highlight=False)
    return summary


def plot(posterior: Posterior) -> Figure:
    """The picture of an attack: truth, MAP, posterior mean, sd and draws, and below them whether to believe it."""
    return picture(posterior, posterior.summary)


def picture(posterior: Posterior, summary: dict[str, Any], draws: int = 4) -> Figure:
    """One row an example (at most four): truth, MAP, posterior mean, sd, draws; below, whether to believe it. Of
    records, their cells (`records.picture`); of text, its tokens (`sentences.picture`)."""
    from matplotlib.figure import Figure

    of_table = cells.columns_of(posterior)
    if of_table is not None:
        return records.picture(posterior, summary, of_table, heading(posterior), verdict(summary))

    of_text = tokens.vocabulary_of(posterior)
    if of_text is not None:
        return sentences.picture(posterior, summary, of_text, heading(posterior), verdict(summary))

    shown = min(len(posterior.mode), 4)
    order = np.arange(len(posterior.mode))
    map_order = order
    if posterior.truth is not None:
        order, map_order = (metrics.match(x, posterior.truth) for x in (posterior.mean, posterior.mode))
    columns: list[tuple[str, np.ndarray]] = []
    if posterior.truth is not None:
        columns.append(("private image\n(the truth)", posterior.truth))
    columns.append(("most probable\n(MAP)", posterior.mode[map_order]))
    if posterior.kind != "point":
        columns.append(("posterior mean\n(least expected error)", posterior.mean[order]))
        columns.append(("uncertainty\n(posterior sd)", posterior.sd[order]))
        picks = np.linspace(0, len(posterior.draws) - 1, draws + 2).astype(int)[1:-1]
        columns += [(f"posterior draw {k + 1}\n", posterior.draws[i][order]) for k, i in enumerate(picks)]
    width = max(5.0, 1.45 * len(columns) + 0.5)
    said = textwrap.wrap(verdict(summary), int(width * 12))
    foot = 0.2 * len(said)  # inches that the verdict takes, whole
    figure = Figure(figsize=(width, 1.75 * shown + 1.55 + foot))
    bottom, top = (0.75 + foot) / figure.get_figheight(), 1 - 1.0 / figure.get_figheight()
    grid = figure.add_gridspec(
        shown, len(columns), left=0.015, right=0.985, bottom=bottom, top=top, wspace=0.08, hspace=0.25
    )
    prior_sd = summary["prior_sd"]
    scale = max(float(posterior.sd.max()), prior_sd or 0.0, 1e-9)
    for row in range(shown):
        for column, (title, images) in enumerate(columns):
            axes = figure.add_subplot(grid[row, column])
            axes.set_xticks([]), axes.set_yticks([])
            if "uncertainty" in title:
                drawn = axes.imshow(_grey(images[row]), cmap="magma", vmin=0, vmax=scale)
                bar = axes.inset_axes((0.0, -0.09, 1.0, 0.05))
                figure.colorbar(drawn, cax=bar, orientation="horizontal",
                                ticks=[0, prior_sd or scale])  # fmt: skip
                bar.set_xticklabels(["0", f"prior {prior_sd:.2g}" if prior_sd else f"{scale:.2g}"], fontsize=7)
            else:
                _show(axes, images[row])
                note = _note(title, images, posterior.truth, row)
                axes.set_xlabel(note, fontsize=8, color=INK)
            if row == 0:
                axes.set_title(_named(title, summary), fontsize=9, color=INK)
    source = posterior.attrs.get("data") or posterior.attrs.get("observed") or ""
    of = "/".join(Path(str(source)).parts[-2:])
    network = posterior.attrs.get("network", "")
    made = f"{of}, network {network}, model {summary['model']}, inference {summary['inference']}"
    made += f", approximate: {summary['approximation']}" if summary["approximation"] else ""
    made += f"; {shown} of {len(posterior.mode)} examples are shown" if shown < len(posterior.mode) else ""
    figure.text(0.015, 1 - 0.22 / figure.get_figheight(), heading(posterior), fontsize=10.5,
                color=INK, weight="bold", va="center")  # fmt: skip
    figure.text(0.015, 1 - 0.45 / figure.get_figheight(), made, fontsize=8, color=INK, va="center")
    lines = []
    if summary["coverage_90"] is not None:
        lines.append(
            _named(
                f"{summary['coverage_90']:.0%} of the true pixels lie inside their 90 % posterior interval.", summary
            )
        )
    if posterior.kind != "point":
        lines.append("Bright sd: the gradient leaves this pixel open. Draws: images that explain it as well.")
    figure.text(0.015, (foot + 0.25) / figure.get_figheight(), "  ".join(lines), fontsize=8, color=INK, va="center")
    figure.text(0.015, (foot + 0.08) / figure.get_figheight(), "\n".join(said), fontsize=9, weight="bold", va="top",
                linespacing=1.3, color=COLOURS[colour(summary)][1])  # fmt: skip
    return figure


def heading(posterior: Posterior) -> str:
    """What was shared, and through how much noise: σ is *assumed* where the observation was not made here, unless it
    was inferred."""
    shared = "update" if posterior.attrs.get("local") else "gradient"
    sigma = posterior.attrs.get("sigma")
    assumed = "inferred " if "log_sigma" in posterior.latents else "" if posterior.truth is not None else "assumed "
    return f"What one shared {shared}{f' + noise of {assumed}σ = {sigma:g}' if sigma else ''} reveals"


def signal(observed: Observation) -> str:
    """What is known before the attack: the norm of g against that of the noise in it, σ√D for D entries.

    ‖g‖² = ‖u‖² + σ² D on average, give or take σ² √(2 D) of noise: what is beyond that is signal.
    """
    norm, size = float(observed.g.double().norm()), len(observed.g)
    shared = "update" if observed.client.local else "gradient"
    if observed.sigma is None:
        told = "σ is inferred" if observed.protection.infers_sigma else f"behind {observed.protection}"
        return f"norm of the {shared}: {norm:.3g}, over {size:,} entries; {told}"
    noise = observed.sigma * math.sqrt(size)
    lead = (
        f"norm of the {shared}: {norm:.3g}; of the noise in it: {noise:.3g} (σ√D, σ = {observed.sigma:g}, D = {size:,})"
    )
    beyond = (norm / noise) ** 2 - 1
    if beyond <= 3 * math.sqrt(2 / size):
        return f"{lead}: its norm is that of noise alone"
    share = math.sqrt(beyond / (1 + beyond))
    return f"{lead}: " + ("noise hardly changes it" if share > 0.99 else f"{share:.0%} of its length is signal")


def _note(title: str, images: np.ndarray, truth: np.ndarray | None, row: int) -> str:
    if truth is None or "truth" in title or "draw" in title:
        return ""
    return f"{metrics.psnr(images[row : row + 1], truth[row : row + 1])[0]:.1f} dB"


def _grey(image: np.ndarray) -> np.ndarray:
    return image.mean(0) if image.ndim == 3 else np.atleast_2d(image)


def _show(axes: Any, image: np.ndarray) -> None:
    image = np.clip(image, 0, 1)
    if image.ndim == 3 and image.shape[0] == 3:
        axes.imshow(np.moveaxis(image, 0, -1))
    else:
        axes.imshow(_grey(image), cmap="gray", vmin=0, vmax=1)
