"""Is a posterior calibrated? Truths drawn from the model, the inference run on each: SBC, TARP, coverage."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pplleak import runs
from pplleak.cli._options import PriorName, Victim, given, groups, options, parse, program_settings, settings_of
from pplleak.errors import BadInput, require_positive
from pplleak.programs import MODEL
from pplleak.progress import bar

SAID = "calibration.json"
FEWEST = 3  # draws that a standard error can be made of


@dataclasses.dataclass(frozen=True)
class Calibrate(Victim):
    model: str = MODEL
    """What the truths are drawn from, and the adversary believes: a name or ./FILE.py; its beliefs are --model.NAME.
    --adversary.NAME lets the adversary believe something else."""
    prior: PriorName = ""
    inference: str = "hmc"
    """A name (`pplleak ls`) or ./FILE.py; its settings are --inference.NAME."""
    draws: int = 100
    """Truths, each attacked once."""
    workers: int = 1
    """Processes, of one thread each."""
    out: Path = Path("calibration")
    """Folder for calibration.png, calibration.json and draws/; a run with the same settings goes on there."""


def run(argv: Sequence[str]) -> int:
    args = _parsed(argv)
    require_positive(workers=args.workers)
    if args.draws < FEWEST:
        raise BadInput(f"--draws must be at least {FEWEST}, not {args.draws}")
    if args.labels == "recovered":
        raise BadInput("--labels recovered: a calibration takes labels as known or unknown")

    from rich.console import Console

    from pplleak.studies.attack import report
    from pplleak.studies.calibration import report as calibration_report
    from pplleak.studies.calibration.draws import Draw

    folder = report.prepare(report.prepare(args.out) / "draws")
    said = runs.settings(args, leaving=("index", "draws", "workers", "out"))
    _begin(args.out, said)
    complete = work(argv, [k for k in range(args.draws) if not _file(folder, k).exists()], args.workers)
    draws = [Draw.load(_file(folder, k)) for k in range(args.draws) if _file(folder, k).exists()]
    if not draws:
        raise KeyboardInterrupt
    console, written = Console(), ""
    if len(draws) >= FEWEST:
        summary = calibration_report.write(draws, said, args.out)
        console.print(calibration_report.table(summary, f"{args.model} × {args.inference}"))
        written = f"written to {args.out}/: calibration.png, {SAID}, draws/"
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


def _begin(out: Path, said: dict[str, Any]) -> None:
    """Write down what is run in `out`, or see that it is what was begun there."""
    from pplleak.studies.calibration import report as calibration_report

    if not (out / SAID).exists():
        calibration_report.keep({"settings": said}, out)
        return
    with runs.readable(out / SAID):
        before = json.loads((out / SAID).read_text())["settings"]
    runs.require_same(before, said, out)


def work(argv: Sequence[str], missing: Sequence[int], workers: int) -> bool:
    """Make the missing draws; False where Ctrl-C ended it early."""
    try:
        if workers == 1:
            one = maker(_parsed(argv))
            for k in bar("truths", len(missing)):
                one(missing[k])
        else:
            for _, job in zip(bar("truths", len(missing)), _parallel(argv, missing, workers), strict=False):
                job()
    except KeyboardInterrupt:
        return False
    return True


def _parallel(argv: Sequence[str], missing: Sequence[int], workers: int) -> Iterator[Callable[[], Any]]:
    """Draws as they are finished by other processes; the command line travels, and each process reads it anew."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (list(argv),))
    try:
        yield from (done.result for done in as_completed([pool.submit(_one, k) for k in missing]))
    finally:
        pool.shutdown(cancel_futures=True)  # what is being computed is finished, and kept


_make: Callable[[int], None]  # of this process


def _start(argv: list[str]) -> None:
    import torch

    global _make
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that the user sees
    _make = maker(_parsed(argv))


def _one(k: int) -> None:
    _make(k)


def maker(args: Any) -> Callable[[int], None]:
    """What makes draw k of a run and keeps it."""
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.calibration import draws as calibration_draws

    base = arguments.spare_threads(arguments.observed(args, 0))
    own = {n: v for n, v in options(args, "adversary").items() if v is not None}

    def make(k: int) -> None:
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
        made.save(_file(args.out / "draws", k))

    return make


def _file(folder: Path, k: int) -> Path:
    return folder / f"{k:05d}.npz"
