"""`pplleak compare`: the same images attacked by several inferences, with paired differences."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from pplleak import data, runs
from pplleak.cli import _arguments as arguments
from pplleak.cli._options import Compare, options
from pplleak.progress import bar
from pplleak.studies.attack.attack import Target
from pplleak.studies.compare import compare


def run(argv: Sequence[str]) -> int:
    args, names, settings = arguments.several(Compare, "compare", argv, "map,laplace,svi,hmc")
    out = runs.prepare(args.out)
    indices = range(args.index, args.index + args.count)
    for index in indices:
        data.private(args.data, args.data_root).batch(index, args.batch_size)  # say so before the work, not after

    def target(index: int) -> Target:  # with noise of its own: differences are over images and noise
        return arguments.spare_threads(arguments.private_target(args, index, args.seed + index))

    table = compare.attacked(out)
    settled = runs.settings(args, leaving=("index", "count", "out"))
    runs.settle(out / "run.json", settled, rows=table.path)

    def asked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:  # another run may have left rows of more images
        return [r for r in rows if r["index"] in indices]

    every = compare.compare(
        [(i, functools.cache(functools.partial(target, i))) for i in indices],
        args.model,
        names,
        beliefs=options(args, "model"),
        settings=settings,
        seed=args.seed,
        progress=bar,
        known=table.read(),
        keep=lambda rows: compare.write(asked(table.add(rows)), names, out),
    )
    rows = asked(every)
    if not rows:
        raise KeyboardInterrupt
    compare.write(rows, names, out)
    console = Console()
    console.print(compare.table(rows, names, per_image=True))
    console.print(compare.table(rows, names))
    console.print(compare.paired_table(rows, names))
    said = f"written to {out}/: compare.csv, compare.json, compare.png"
    complete = len(rows) == len(names) * len(indices)
    console.print(
        said if complete else f"interrupted: {len(rows)} attacks kept, the same command goes on; {said}",
        highlight=False,
    )
    return 0 if complete else 130
