"""How much was leaked: the mutual information of inputs and gradient, in bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplleak import programs, runs
from pplleak.cli._options import PriorName, Victim, groups, options, parse
from pplleak.errors import BadInput
from pplleak.programs import MODEL
from pplleak.progress import bar
from pplleak.runs import Rows

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = {"draw": int, "bits": float, "bits_se": float | None, "converged": bool, "seconds": float}


@dataclasses.dataclass(frozen=True)
class Bits(Victim):
    model: str = MODEL
    """What the adversary believes, and what inputs and gradients are drawn from: a name (`pplleak ls`) or ./FILE.py."""
    prior: PriorName = ""
    inference: str = "laplace"
    """What finds the evidence p(g) (laplace, svi, smc or hmc); its settings are --inference.NAME."""
    count: int = 50
    """Inputs and gradients that are drawn from the model; --index is not used."""
    out: Path = Path("bits")
    """Folder for bits.csv and bits.json; a run with the same settings goes on there."""


def run(argv: Sequence[str]) -> int:
    """Draw, attack, and average the gains; Ctrl-C keeps the draws that are complete."""
    args = parse(Bits, "bits", argv, groups(Bits, argv, "network", "channel", "defence", "model", "inference"))
    if args.count < 1:
        raise BadInput(f"--count must be at least 1, not {args.count}")

    from rich.console import Console

    from pplleak.cli import _arguments as arguments
    from pplleak.posterior import information
    from pplleak.studies.attack.attack import attack, believe
    from pplleak.studies.risk.risk import from_model

    model, inference = args.model, args.inference
    out = runs.prepare(args.out)
    settings = runs.settings(args, leaving=("index", "count", "out"))
    kept = Rows(out / "bits.csv", COLUMNS, ("draw",))
    runs.settle(out / "bits.json", settings, under="settings", rows=kept.path)
    rows = [r for r in kept.read() if r["draw"] < args.count]
    done = {r["draw"] for r in rows}
    base = arguments.spare_threads(arguments.observed(args, 0))
    beliefs = arguments.beliefs(args)
    try:
        for draw in bar("draws from the model", args.count):
            if draw in done:
                continue
            drawn = from_model(base, model, beliefs, args.seed + draw)
            found = attack(drawn, model, inference, beliefs=beliefs, settings=options(args, "inference"),
                                   seed=args.seed + draw).whole()  # fmt: skip
            if "bits" not in found.attrs:  # `attack` does without; here it is an error, and this raises it
                bound = believe(programs.load("models", model), drawn, beliefs)
                information.gain(bound, drawn, drawn.client, found, drawn.truth)  # type: ignore[arg-type]
            row = {"draw": draw, **{c: found.attrs[c] for c in ("bits", "bits_se")},
                   "converged": found.converged, "seconds": round(found.attrs["seconds"], 2)}  # fmt: skip
            rows.append(row)
            write(kept.add([row]), settings, out)
        write(kept.read(), settings, out)  # a run that was killed may have left a row that the summary lacks
    except KeyboardInterrupt:
        if not rows:
            raise
    complete = len(rows) == args.count
    console = Console()
    console.print(table(rows, model, inference, math.prod(base.client.input_shape) * args.batch_size))
    said = f"written to {out}/: bits.csv, bits.json"
    console.print(said if complete else f"interrupted: {len(rows)} draws kept, the same command goes on; {said}",
                  highlight=False, soft_wrap=True)  # fmt: skip
    return 0 if complete else 130


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """mutual_information and se in bits, draws, and how many of their attacks converged."""
    from pplleak.posterior import information

    found = information.mutual_information([r["bits"] for r in rows])
    return {"mutual_information": found.value, "se": found.se, "draws": len(rows),
            "converged": sum(bool(r["converged"]) for r in rows)}  # fmt: skip


def table(rows: Sequence[dict[str, Any]], model: str, inference: str, pixels: int) -> Table:
    """What the gradient says, and how far to trust the number."""
    from rich.table import Table

    found = summarise(rows)
    error = "" if found["se"] is None else f" ± {found['se']:.1f}"
    made = Table(
        title=f"{model} × {inference}, {len(rows)} draws from the model", title_justify="left", show_header=False
    )
    made.add_row("information about the inputs", f"{found['mutual_information']:.1f}{error} bits")
    made.add_row("a pixel", f"{found['mutual_information'] / pixels:.2f} bits")
    good = found["converged"] == len(rows)
    made.add_row("attacks that converged", f"[{'green' if good else 'bold red'}]{found['converged']} of {len(rows)}[/]")
    return made


def write(rows: Sequence[dict[str, Any]], settings: dict[str, Any], out: Path) -> None:
    """bits.json: the average, what was run, and every draw."""
    runs.json(out / "bits.json", {**summarise(rows), "settings": settings, "rows": list(rows)})
