"""How much was leaked, in bits: the mutual information of inputs and gradient, averaged over draws from the model.

I(x; g) = E over x, g ~ model of [log₂ p(g | x) − log₂ p(g)]          (`pplleak.posterior.information`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplleak import programs, runs
from pplleak.federation.observation import Observation
from pplleak.posterior import information
from pplleak.progress import ProgressBar, silent
from pplleak.runs import Rows
from pplleak.studies.attack.attack import attack, believe
from pplleak.studies.risk.risk import from_model

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
COLUMNS = {"draw": int, "bits": float, "bits_se": float | None, "converged": bool, "seconds": float}


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
    """Draw `count` inputs and gradients from the model, attack each, and keep its gain in `out`; a row a draw.

    Goes on from the rows that are there; Ctrl-C keeps those that are complete.

    Args:
        base: the client, and what is known of it. made_with: what decides the rows (`runs.settings`).

    Raises:
        BadInput: the inference gives no evidence p(g), or the folder holds rows that were made with something else.
    """
    kept = Rows(out / "bits.csv", COLUMNS, ("draw",))
    runs.settle(out / "bits.json", made_with, under="settings", rows=kept.path)
    rows = [r for r in kept.read() if r["draw"] < count]
    done = {r["draw"] for r in rows}
    try:
        for draw in progress("draws from the model", count):
            if draw in done:
                continue
            drawn = from_model(base, model, beliefs, seed + draw)
            told = gained(drawn, model, inference, beliefs=beliefs, settings=settings, seed=seed + draw)
            row = {"draw": draw, **told}
            rows.append(row)
            write(kept.add([row]), made_with, out)
        write(kept.read(), made_with, out)  # a run that was killed may have left a row that the summary lacks
    except KeyboardInterrupt:
        if not rows:
            raise
    return rows


def gained(
    observed: Observation,
    model: str,
    inference: str,
    *,
    beliefs: Mapping[str, Any] | None,
    settings: Mapping[str, Any] | None,
    seed: int,
) -> Row:
    """What one attack gains: bits, bits_se, converged, seconds.

    Raises:
        BadInput: the inference gives no evidence p(g). KeyboardInterrupt: the attack was ended early.
    """
    posterior = attack(observed, model, inference, beliefs=beliefs, settings=settings, seed=seed).whole()
    if "bits" not in posterior.attrs:  # `attack` does without; here it is an error, and this raises it
        bound = believe(programs.load("models", model), observed, beliefs)
        information.gain(bound, observed, observed.client, posterior, observed.truth)  # type: ignore[arg-type]
    return {**{c: posterior.attrs[c] for c in ("bits", "bits_se")}, "converged": posterior.converged,
            "seconds": round(posterior.attrs["seconds"], 2)}  # fmt: skip


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """mutual_information and se in bits, draws, and how many of their attacks converged."""
    estimate = information.mutual_information([r["bits"] for r in rows])
    return {"mutual_information": estimate.value, "se": estimate.se, "draws": len(rows),
            "converged": sum(bool(r["converged"]) for r in rows)}  # fmt: skip


def table(rows: Sequence[Row], model: str, inference: str, pixels: int) -> Table:
    """What the gradient gives away, and how far to trust the number."""
    from rich.table import Table
    from rich.text import Text

    summary = summarise(rows)
    error = "" if summary["se"] is None else f" ± {summary['se']:.1f}"
    made = Table(
        title=f"{model} × {inference}, {len(rows)} draws from the model", title_justify="left", show_header=False
    )
    made.add_row("information about the inputs", f"{summary['mutual_information']:.1f}{error} bits")
    made.add_row("a pixel", f"{summary['mutual_information'] / pixels:.2f} bits")
    colour = "green" if summary["converged"] == len(rows) else "bold red"
    made.add_row("attacks that converged", Text(f"{summary['converged']} of {len(rows)}", colour))
    return made


def write(rows: Sequence[Row], made_with: Mapping[str, Any], out: Path) -> None:
    """bits.json: the average, what was run, and every draw."""
    runs.json(out / "bits.json", {**summarise(rows), "settings": dict(made_with), "rows": list(rows)})
