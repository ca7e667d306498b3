"""How often reconstructions come within δ of the private image: claimed by the posterior, and really."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pplleak import runs, signatures, sources
from pplleak.cli import _where as where
from pplleak.cli._options import PriorName, Victim, several
from pplleak.programs import MODEL
from pplleak.progress import bar, terminal

if TYPE_CHECKING:
    from pplleak.federation.observation import Observation
    from pplleak.studies.compare.compare import Job
    from pplleak.studies.risk.risk import Name
else:
    Name = signatures.kind(sources.module("pplleak.studies.risk.risk"), "Name")


@dataclasses.dataclass(frozen=True)
class Risk(Victim, where.Where):
    model: str = MODEL
    """What the adversary believes: a name (`pplleak ls`) or ./FILE.py; its beliefs are --model.NAME."""
    prior: PriorName = ""
    inference: str = "map,hmc"
    """Names or paths, separated by commas; the settings of each are --NAME.SETTING."""
    count: int = 20
    """Images, from --index on. The channel's noise is drawn anew for each."""
    draws_from: Literal["data", "model"] = "data"
    """Real images, or images and labels drawn from the model: there, claimed and realised must agree."""
    distance: Name = "rms"
    """rms (of a pixel) or l2 (over all) at most δ, 1 − ssim at most δ, or psnr of at least δ dB."""
    deltas: tuple[float, ...] = ()
    """Thresholds of the curve (default: ten)."""
    bounds: bool = True
    """With --draws-from model: draw what no adversary can do, where a bound is known."""
    out: Path = Path("risk")
    """Folder for risk.png, risk.csv, risk.json and risk_images.csv; a run with the same settings goes on there."""


def run(argv: Sequence[str]) -> int:
    args, names, _ = several(Risk, "risk", argv)
    with where.claim(args) as out:
        return work(args, names, argv, out)


def work(args: Any, names: Sequence[str], argv: Sequence[str], out: Path) -> int:
    """The attacks that are missing in a folder, and its tables and picture; the exit code."""
    from pplleak import data
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.risk import limits, risk
    from pplleak.studies.risk import report as risk_report

    indices = range(args.index, args.index + args.count)
    private = data.private(args.data, args.data_root)
    for index in indices if args.draws_from == "data" else ():
        private.batch(index, args.batch_size)  # say so before the work, not after
    distance = risk.DISTANCES[args.distance]
    deltas = distance.deltas(args.deltas, math.prod(private.input_shape))

    settled = runs.settings(args, leaving=("index", "count", "out", "bounds", *where.LEAVING))
    table = risk.images(out)
    runs.settle(out / "risk.json", settled, under="settings", rows=table.path)
    mine = where.attacks(args, argv, maker, names, table, lambda rows: risk.write(table.add(rows), settled, out))
    every = table.read()
    rows = [r for r in every if r["index"] in indices]
    if not rows:
        raise KeyboardInterrupt
    bound, more = None, {}
    if args.bounds and args.draws_from == "model":
        bound = limits.of_model(observer(args)(args.index), args.model, arguments.beliefs(args), distance, deltas, bar)
        more = {"bounds": bound.to_json()}
    risk.write(every, settled, out, indices, **more)
    console = terminal()
    risk_report.write(rows, distance, args.draws_from, bound, out, console)
    ended = {(r["index"], r["inference"]) for r in rows}
    written = f"written to {out}/: risk.png, risk.csv, risk.json, risk_images.csv"
    complete = ended >= mine
    console.print(
        written if complete else f"interrupted: {len(ended)} attacks kept, the same command goes on; {written}",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if complete else 130


def observer(args: Any) -> Callable[[int], Observation]:
    """What makes the observation of an image, or a draw from the model."""
    from pplleak.cli import _arguments as arguments
    from pplleak.density import label_recovery
    from pplleak.studies.risk import risk

    def observed(index: int) -> Observation:
        if args.draws_from == "data":
            return arguments.spare_threads(arguments.observed(args, index, args.seed + index))
        recover = args.labels == "recovered"  # from the gradient of the image that is drawn, not of the data's
        asked = dataclasses.replace(args, labels="known") if recover else args
        base = arguments.spare_threads(arguments.observed(asked, 0))
        drawn = risk.from_model(base, args.model, arguments.beliefs(args), args.seed + index)
        return label_recovery.recovered(drawn) if recover else drawn

    return observed


def maker(argv: Sequence[str]) -> Callable[[Job], list[dict[str, Any]]]:
    """What makes the rows of one attack."""
    from pplleak import data
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.compare import compare
    from pplleak.studies.risk import risk

    args, _, settings = several(Risk, "risk", argv)
    distance = risk.DISTANCES[args.distance]
    deltas = distance.deltas(args.deltas, math.prod(data.private(args.data, args.data_root).input_shape))
    attack = compare.attacker(
        observer(args), args.model, beliefs=arguments.beliefs(args), settings=settings, seed=args.seed
    )
    return lambda job: [
        {"index": job[0], "inference": job[1], **row} for row in risk.score(attack(job), distance, deltas)
    ]
