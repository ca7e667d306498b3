"""MAP against the full posterior: the same images attacked by several inferences."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior
from pplleak.progress import ProgressBar, silent
from pplleak.runs import Rows
from pplleak.studies.attack.attack import attack

Job = tuple[int, str]  # an image's index, an inference
COLUMNS = ("psnr_map", "psnr_mean", "ssim_map", "ssim_mean", "sd_mean", "coverage_90", "rhat_max", "ess_min", "khat",
           "divergences", "seconds", "fits", "converged", "approximation")  # fmt: skip
KINDS = dict.fromkeys(COLUMNS, float | None) | {
    "divergences": int | None,
    "fits": bool | None,
    "converged": bool,
    "approximation": str | None,
}
NUMBERS = [c for c in COLUMNS if c != "approximation"]
SHOWN = {  # the terminal has 80 columns
    "psnr_map": "MAP, dB",
    "psnr_mean": "mean, dB",
    "ssim_mean": "SSIM",
    "coverage_90": "in 90 %",
    "seconds": "seconds",
}


def attacker(
    make: Callable[[int], Observation],
    model: str,
    *,
    beliefs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Callable[[Job], Posterior]:
    """What attacks one image with one inference.

    Args:
        make: the observation of an image, by its index. settings: for each inference, its keyword arguments.

    What is given back raises KeyboardInterrupt where an attack was ended early: half a posterior is not compared with
    whole ones.
    """
    made = functools.lru_cache(maxsize=1)(make)  # the inferences of an image follow each other

    def one(job: Job) -> Posterior:
        index, name = job
        given = (settings or {}).get(name, {})
        return attack(made(index), model, name, beliefs=beliefs, settings=given, seed=seed).whole()

    return one


def gathered(
    results: Iterable[list[dict[str, Any]]],
    total: int,
    *,
    progress: ProgressBar = silent,
    known: Sequence[dict[str, Any]] = (),
    keep: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
) -> list[dict[str, Any]]:
    """The rows of `total` attacks as they come, behind those that are known. Ctrl-C keeps the rows that are complete.

    Args:
        results: the rows of one attack each. known: rows of an earlier run. keep: called with the rows of each attack.
    """
    rows = list(known)
    try:
        for _, fresh in zip(progress("attacks", total), results, strict=False):
            keep(fresh)
            rows += fresh
    except KeyboardInterrupt:
        if not rows:
            raise
    return rows


def compare(
    targets: Sequence[tuple[int, Callable[[], Observation]]],
    model: str,
    inferences: Sequence[str],
    *,
    beliefs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    progress: ProgressBar = silent,
    known: Sequence[dict[str, Any]] = (),
    keep: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Attack every target with every inference, in this process; one row an attack, as `gathered` keeps them.

    Args:
        targets: pairs of an image's index and a function that makes its observation.
        settings: for each inference, its keyword arguments. known: rows of an earlier run, whose attacks are not run
            again.
    """
    makers, done = dict(targets), {(r["index"], r["inference"]) for r in known}
    jobs = [(index, name) for index in makers for name in inferences if (index, name) not in done]
    one = attacker(lambda index: makers[index](), model, beliefs=beliefs, settings=settings, seed=seed)
    return gathered(([row(job, one(job))] for job in jobs), len(jobs), progress=progress, known=known, keep=keep)


def row(job: Job, found: Posterior) -> dict[str, Any]:
    """One attack's row."""
    summary = found.summary
    fitted = "a fitted family" if found.kind == "approximation" else None
    said = {**summary, "approximation": summary["approximation"] or fitted}
    return {"index": job[0], "inference": job[1], **{c: said[c] for c in COLUMNS}}


def average(rows: Sequence[Mapping[str, Any]], inference: str, column: str) -> tuple[float, float, int] | None:
    """Mean, standard error (NaN for one image) and number of the values that are there."""
    values = [float(r[column]) for r in rows if r["inference"] == inference and r[column] is not None]
    if not values:
        return None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), error, len(values)


def paired(
    rows: Sequence[Mapping[str, Any]], one: tuple[str, str], other: tuple[str, str]
) -> dict[str, float | int | None] | None:
    """The difference one − other of two (inference, column), image by image, over the images that have both.

    mean and se (None for one image) of the difference, wins: images where it is positive, ties count a half, count.
    The se of a paired difference leaves out how much the images differ among themselves.
    """
    values = [
        {r["index"]: float(r[column]) for r in rows if r["inference"] == name and r[column] is not None}
        for name, column in (one, other)
    ]
    gap = np.array([values[0][i] - values[1][i] for i in values[0] if i in values[1]])
    if not len(gap):
        return None
    se = float(gap.std(ddof=1)) / math.sqrt(len(gap)) if len(gap) > 1 else None
    wins = float((gap > 0).sum() + 0.5 * (gap == 0).sum())
    return {"mean": float(gap.mean()), "se": se, "wins": wins, "count": len(gap)}


def against(rows: Sequence[Mapping[str, Any]], inferences: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each inference, in PSNR of the posterior mean, dB: `baseline`, against the first inference; `own_map`,
    against the same inference's MAP (None for a point, which has no other)."""
    points = {n for n in inferences if all(r["coverage_90"] is None for r in rows if r["inference"] == n)}
    return {
        n: {
            "baseline": None if n == inferences[0] else paired(rows, (n, "psnr_mean"), (inferences[0], "psnr_mean")),
            "own_map": None if n in points else paired(rows, (n, "psnr_mean"), (n, "psnr_map")),
        }
        for n in inferences
    }


def paired_table(rows: Sequence[Mapping[str, Any]], inferences: Sequence[str]) -> Table:
    """Paired differences and win rates, with the coverage beside them: quality and honesty."""
    made = Table(
        title=f"paired differences of the posterior mean's PSNR, dB (baseline: {inferences[0]})",
        title_justify="left",
        padding=(0, 0, 0, 1),
        caption="wins: images on which the mean is the better of the two; 90 % intervals should hold 90 %",
        caption_justify="left",
    )
    for name in ("inference", "− baseline", "wins", "− own MAP", "wins", "in 90 %"):
        made.add_column(name, justify="left" if name == "inference" else "right", no_wrap=True)
    for name, found in against(rows, inferences).items():
        cells: list[str] = []
        for gap in found.values():
            if gap is None:
                cells += ["–", "–"]
                continue
            spread = "" if gap["se"] is None else f"±{gap['se']:.2f}"
            cells += [f"{gap['mean']:+.2f}{spread}", f"{gap['wins']:g} of {gap['count']}"]
        held = average(rows, name, "coverage_90")
        honest = "–" if held is None else f"{held[0]:.1%}" + ("" if math.isnan(held[1]) else f"±{held[1]:.1%}")
        made.add_row(_marked(rows, name), *cells, honest)
    return made


def _marked(rows: Sequence[Mapping[str, Any]], inference: str) -> str:
    """The inference's name, with a sign where something stands in for the posterior."""
    return inference + " ≈" * any(r["approximation"] for r in rows if r["inference"] == inference)


def _good(row: Mapping[str, Any]) -> bool:
    """Whether an attack converged, and its model does not miss the gradient."""
    return bool(row["converged"]) and row["fits"] is not False


def table(rows: Sequence[Mapping[str, Any]], inferences: Sequence[str], per_image: bool = False) -> Table:
    """Mean ± standard error of each inference, or every attack."""
    made = Table(
        title="each image" if per_image else "mean ± standard error",
        title_justify="left",
        padding=(0, 0, 0, 1),
        caption="PSNR of the MAP and of the posterior mean; SSIM of the mean; true pixels in their 90 % interval; "
        "≈: an approximation of the posterior",
        caption_justify="left",
    )
    for name in (["image"] if per_image else []) + ["inference", *SHOWN.values(), "good"]:
        made.add_column(name, justify="left" if name in ("image", "inference") else "right", no_wrap=True)
    if per_image:
        for r in rows:
            cells = [_number(r[c], c) for c in SHOWN]
            good = "yes" if _good(r) else Text("no", "red")
            made.add_row(str(r["index"]), _marked([r], r["inference"]), *cells, good)
        return made
    for name in inferences:
        cells = []
        for column in SHOWN:
            found = average(rows, name, column)
            if found is None:
                cells.append("–")
            else:
                spread = "" if math.isnan(found[1]) else f"±{_number(found[1], column, short=True)}"
                cells.append(_number(found[0], column, short=True) + spread)
        mine = [r for r in rows if r["inference"] == name]
        cells.append(f"{sum(map(_good, mine))} of {len(mine)}")
        made.add_row(_marked(rows, name), *cells)
    return made


def _number(value: float | None, column: str, short: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if column in ("ssim_mean", "coverage_90") else f"{value:.{1 if short else 2}f}"


def attacked(out: Path) -> Rows:
    """compare.csv, one row an attack: what a run goes on from."""
    return Rows(out / "compare.csv", {"index": int, "inference": str, **KINDS}, ("index", "inference"))
