"""Attack the same images with several inferences: MAP against the full posterior."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplleak import runs
from pplleak.cli import _where as where
from pplleak.cli._options import PriorName, Victim, several
from pplleak.programs import MODEL
from pplleak.progress import terminal

if TYPE_CHECKING:
    from pplleak.federation.observation import Observation
    from pplleak.studies.compare.compare import Job


@dataclasses.dataclass(frozen=True)
class Compare(Victim, where.Where):
    model: str = MODEL
    """What the adversary believes: a name (`pplleak ls`) or ./FILE.py; its beliefs are --model.NAME."""
    prior: PriorName = ""
    inference: str = "map,laplace,svi,hmc"
    """Names or paths, separated by commas; the settings of each are --NAME.SETTING."""
    count: int = 5
    """Images, from --index on."""
    out: Path = Path("compare")
    """Folder for compare.csv, compare.json and compare.png; a run with the same settings goes on there."""


def run(argv: Sequence[str]) -> int:
    args, names, _ = several(Compare, "compare", argv)
    with where.claim(args) as out:
        return work(args, names, argv, out)


def work(args: Any, names: Sequence[str], argv: Sequence[str], out: Path) -> int:
    """The attacks that are missing in a folder, and its tables and picture; the exit code."""
    from pplleak import data
    from pplleak.studies.compare import compare, report

    indices = range(args.index, args.index + args.count)
    for index in indices:
        data.private(args.data, args.data_root).batch(index, args.batch_size)  # say so before the work, not after
    table = compare.attacked(out)
    settled = runs.settings(args, leaving=("index", "count", "out", *where.LEAVING))
    runs.settle(out / "run.json", settled, rows=table.path)

    def asked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:  # another run may have left rows of more images
        return [r for r in rows if r["index"] in indices]

    mine = where.attacks(args, argv, maker, names, table, lambda rows: report.write(asked(table.add(rows)), names, out))
    rows = asked(table.read())
    if not rows:
        raise KeyboardInterrupt
    report.write(rows, names, out)
    console = terminal()
    console.print(compare.table(rows, names, per_image=True))
    console.print(compare.table(rows, names))
    console.print(compare.paired_table(rows, names))
    written = f"written to {out}/: compare.csv, compare.json, compare.png"
    complete = {table.about(r) for r in rows} >= mine
    console.print(
        written if complete else f"interrupted: {len(rows)} attacks kept, the same command goes on; {written}",
        highlight=False,
    )
    return 0 if complete else 130


def maker(argv: Sequence[str]) -> Callable[[Job], list[dict[str, Any]]]:
    """What makes the row of one attack."""
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.compare import compare

    args, _, settings = several(Compare, "compare", argv)

    def observed(index: int) -> Observation:  # with noise of its own: differences are over images and noise
        return arguments.spare_threads(arguments.observed(args, index, args.seed + index))

    attack = compare.attacker(observed, args.model, beliefs=arguments.beliefs(args), settings=settings, seed=args.seed)
    return lambda job: [compare.row(job, attack(job))]
