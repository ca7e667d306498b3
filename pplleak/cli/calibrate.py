"""Is a posterior calibrated? Truths drawn from the model, the inference run on each: SBC, TARP, coverage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplleak import runs
from pplleak.cli import _where as where
from pplleak.cli._options import PriorName, Victim, given, groups, options, parse, program_settings, settings_of
from pplleak.errors import BadInput, require_positive
from pplleak.programs import MODEL
from pplleak.progress import bar, terminal

if TYPE_CHECKING:
    from pplleak.studies.calibration.draws import Draw

FEWEST = 3  # draws that a standard error can be made of


@dataclasses.dataclass(frozen=True)
class Calibrate(Victim, where.Where):
    model: str = MODEL
    """What the truths are drawn from, and the adversary believes: a name or ./FILE.py; its beliefs are --model.NAME.
    --adversary.NAME lets the adversary believe something else."""
    prior: PriorName = ""
    inference: str = "hmc"
    """A name (`pplleak ls`) or ./FILE.py; its settings are --inference.NAME."""
    draws: int = 100
    """Truths, each attacked once."""
    out: Path = Path("calibration")
    """Folder for calibration.png, calibration.json and draws/; a run with the same settings goes on there."""


def run(argv: Sequence[str]) -> int:
    args = _parsed(argv)
    require_positive(workers=args.workers)
    if args.draws < FEWEST:
        raise BadInput(f"--draws must be at least {FEWEST}, not {args.draws}")
    if args.labels == "recovered":
        raise BadInput("--labels recovered: a calibration takes labels as known or unknown")
    with where.claim(args):
        return work(args, argv)


def work(args: Any, argv: Sequence[str]) -> int:
    """The draws that are missing in a folder, and the verdict on all of them; the exit code."""
    from pplleak.studies.calibration import report as calibration_report
    from pplleak.studies.calibration.draws import Draw

    folder = runs.prepare(args.out / "draws")
    settled = runs.settings(args, leaving=("index", "draws", "out", *where.LEAVING))
    runs.settle(args.out / calibration_report.SUMMARY, settled, under="settings")
    mine = runs.shard(range(args.draws), args.shard)
    complete = make(args, argv, [k for k in mine if not _file(folder, k).exists()], folder)
    draws = [Draw.load(_file(folder, k)) for k in range(args.draws) if _file(folder, k).exists()]
    if not draws:
        raise KeyboardInterrupt
    console, written = terminal(), ""
    if len(draws) >= FEWEST:
        summary = calibration_report.write(draws, settled, args.out)
        console.print(calibration_report.table(summary, f"{args.model} × {args.inference}"))
        written = f"written to {args.out}/: calibration.png, {calibration_report.SUMMARY}, draws/"
    if not complete:
        kept = f"interrupted: {len(draws)} of {args.draws} draws kept, the same command goes on"
        written = "; ".join(filter(None, (kept, written)))
    console.print(written, highlight=False, soft_wrap=True)
    return 0 if complete else 130


def _parsed(argv: Sequence[str]) -> Any:
    parts = groups(Calibrate, argv, "network", "channel", "defence", "model", "inference")
    known = program_settings(argv, "models", given(argv, "--model", Calibrate.model))
    told = {s.name: "what the model was told" for s in known}
    return parse(Calibrate, "calibrate", argv, {**parts, "adversary": settings_of("Adversary", known, told)})


def make(args: Any, argv: Sequence[str], missing: Sequence[int], folder: Path) -> bool:
    """Make the missing draws and keep each as it comes; False where Ctrl-C ended it early."""
    try:
        with where.spread(args, argv, maker, missing) as results:
            for _, (k, draw) in zip(bar("truths", len(missing)), results, strict=False):
                draw.save(_file(folder, k))
    except KeyboardInterrupt:
        return False
    return True


def maker(argv: Sequence[str]) -> Callable[[int], tuple[int, Draw]]:
    """What makes draw k of a run, and says which it is."""
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.calibration import draws as calibration_draws

    args = _parsed(argv)
    base = arguments.spare_threads(arguments.observed(args, 0))
    own = {n: v for n, v in options(args, "adversary").items() if v is not None}

    def one(k: int) -> tuple[int, Draw]:
        made = calibration_draws.make(
            base,
            args.model,
            args.inference,
            k,
            beliefs=arguments.beliefs(args),
            adversary=own,
            settings=options(args, "inference"),
            seed=args.seed,
        )
        return k, made

    return one


def _file(folder: Path, k: int) -> Path:
    return folder / f"{k:05d}.npz"
