"""`pplleak compare`: the same images attacked by several inferences, with paired differences."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from rich.console import Console

from pplleak import data
from pplleak.cli import _arguments as arguments
from pplleak.cli._options import Compare
from pplleak.federation.observation import Observation
from pplleak.progress import bar
from pplleak.studies.attack import report
from pplleak.studies.compare import compare


def run(argv: Sequence[str]) -> int:
    args, names, settings = arguments.several(Compare, "compare", argv, "map,laplace,svi,hmc")
    out = report.prepare(args.out)
    indices = range(args.index, args.index + args.count)
    for index in indices:
        data.private(args.data, args.data_root).batch(index, args.batch_size)  # say so before the work, not after

    def observed(index: int) -> Observation:  # with noise of its own: differences are over images and noise
        return arguments.spare_threads(arguments.observed(args, index, args.seed + index))

    rows = compare.compare(
        [(i, functools.cache(functools.partial(observed, i))) for i in indices],
        args.model,
        names,
        beliefs=arguments.beliefs(args),
        settings=settings,
        seed=args.seed,
        progress=bar,
        keep=lambda rows: compare.write(rows, names, out),
    )
    console = Console()
    console.print(compare.table(rows, names, per_image=True))
    console.print(compare.table(rows, names))
    console.print(compare.paired_table(rows, names))
    said = f"written to {out}/: compare.csv, compare.json, compare.png"
    complete = len(rows) == len(names) * len(indices)
    console.print(said if complete else f"interrupted: {len(rows)} attacks kept; {said}", highlight=False)
    return 0 if complete else 130
