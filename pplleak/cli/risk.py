"""`pplleak risk`: how often a reconstruction is near enough, and how often its adversary says so."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from rich.console import Console

from pplleak import data, runs
from pplleak.cli import _arguments as arguments
from pplleak.cli._options import Risk, options
from pplleak.density import label_recovery
from pplleak.progress import bar
from pplleak.studies.attack.attack import Target
from pplleak.studies.risk import limits, risk
from pplleak.studies.risk import report as risk_report


def run(argv: Sequence[str]) -> int:
    args, names, settings = arguments.several(Risk, "risk", argv, "map,hmc")
    out = runs.prepare(args.out)
    indices = range(args.index, args.index + args.count)
    private = data.private(args.data, args.data_root)
    for index in indices if args.draws_from == "data" else ():
        private.batch(index, args.batch_size)  # say so before the work, not after
    distance = risk.DISTANCES[args.distance]
    deltas = distance.deltas(args.deltas, math.prod(private.input_shape))

    def target(index: int) -> Target:
        if args.draws_from == "data":
            return arguments.spare_threads(arguments.private_target(args, index, args.seed + index))
        recover = args.labels == "recovered"  # from the gradient of the image that is drawn, not of the data's
        asked = dataclasses.replace(args, labels="known") if recover else args
        base = arguments.spare_threads(arguments.private_target(asked, 0))
        drawn = risk.from_model(base, args.model, options(args, "model"), args.seed + index)
        return label_recovery.recovered(drawn) if recover else drawn

    settled = runs.settings(args, leaving=("index", "count", "out", "bounds"))
    table = risk.images(out)
    runs.settle(out / "risk.json", settled, under="settings", rows=table.path)
    every = risk.measure(
        [(i, functools.partial(target, i)) for i in indices],
        args.model,
        names,
        distance,
        deltas,
        beliefs=options(args, "model"),
        settings=settings,
        seed=args.seed,
        progress=bar,
        known=table.read(),
        keep=lambda rows: risk.write(table.add(rows), settled, out),
    )
    rows = [r for r in every if r["index"] in indices]
    if not rows:
        raise KeyboardInterrupt
    bound, more = None, {}
    if args.bounds and args.draws_from == "model":
        bound = limits.of_model(target(args.index), args.model, options(args, "model"), distance, deltas, bar)
        more = {"bounds": bound.to_json()}
    risk.write(every, settled, out, indices, **more)
    console = Console()
    risk_report.write(rows, distance, args.draws_from, bound, out, console)
    done = len({(r["index"], r["inference"]) for r in rows})
    written = f"written to {out}/: risk.png, risk.csv, risk.json, risk_images.csv"
    complete = done == len(names) * len(indices)
    console.print(
        written if complete else f"interrupted: {done} attacks kept, the same command goes on; {written}",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if complete else 130
