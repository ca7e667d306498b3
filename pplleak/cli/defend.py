"""What protects, when, at which cost: defences × training steps × adversaries who know of them or not."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplleak import programs, runs, signatures
from pplleak.cli import _where as where
from pplleak.cli._local import UNSAID, LocalFlags
from pplleak.cli._options import (
    NetworkName,
    TrainingData,
    given,
    groups,
    inference_settings,
    options,
    parse,
    said,
    settings_of,
)
from pplleak.errors import BadInput, require_positive
from pplleak.progress import bar, terminal
from pplleak.settings import Named, with_defaults

if TYPE_CHECKING:
    from pplleak.federation.protection import Protection
    from pplleak.studies.defend.defend import Sweep

DEFAULT = signatures.constants("pplleak.federation.rounds", "Federation")
KNOWING = {"steps": 300, "starts": 2}  # of `map`: a few CPU seconds an attack
QUICK = {"defences": ("none", "gaussian:sigma=0.01", "dpsgd:noise_multiplier=0.01"), "steps": (0, 100), "count": 2}


@dataclasses.dataclass(frozen=True)
class Defend(where.Where):
    data: TrainingData = "digits"
    data_root: Path | None = None
    """Folder that holds MNIST/raw or cifar10/ (default: $PPLLEAK_DATA_ROOT, else ./data)."""
    network: NetworkName = "convnet"
    defences: tuple[str, ...] = ("none", "gaussian:sigma=0.01", "gaussian:sigma=0.1", "topk:rate=0.99",
                                 "dpsgd:noise_multiplier=0.01", "dpsgd:noise_multiplier=1")  # fmt: skip
    """Each NAME or NAME:SETTING=VALUE,…: channels, and the defences that change the client."""
    steps: tuple[int, ...] = (0, 10, 100, 1000)
    """Steps of training whose weights are attacked."""
    index: int = 0
    """The first private image that is attacked."""
    count: int = 5
    """How many are (with a batch size: batches)."""
    batch_size: int = 1
    """Examples behind an attacked gradient."""
    local: LocalFlags = UNSAID
    inference: str = "map"
    """Of the adversary who knows the defence; its settings are --inference.NAME."""
    surrogate: float | None = None
    """Sharpness β of a softplus for the network's ReLU in that adversary's model: an approximation."""
    classic_steps: int = 300
    """Steps of the attacks that know of no defence."""
    clients: int = DEFAULT["clients"]
    """Training: clients that the images are dealt out to."""
    participants: int = DEFAULT["participants"]
    """Training: clients asked in each step."""
    train_batch_size: int = DEFAULT["batch_size"]
    """Training: examples that each of them takes."""
    lr: float = DEFAULT["lr"]
    """Training: learning rate of the server's step along gradients."""
    delta: float = 0.1
    """An image counts as recovered within this root-mean-square error of a pixel."""
    seed: int = 0
    """Of the weights, the training, the noise and the attacks."""
    quick: bool = False
    """Three defences, two steps, two images (`--quick True`), where they are not named: minutes."""
    out: Path = Path("defend")
    """Folder for the leaderboard, defences.csv, defences_images.csv and the trainings; the same settings go on."""


def run(argv: Sequence[str]) -> int:
    inference = given(argv, "--inference", Defend.inference)
    known = inference_settings(argv, inference, "")
    light = {s.name: KNOWING[s.name] for s in known if s.name in KNOWING}
    parts = {
        **groups(Defend, argv, "network"),
        "inference": settings_of("Inference", with_defaults(known, light, inference)),
    }
    args = parse(Defend, "defend", argv, parts)
    require_positive(count=args.count)  # before it is replaced: a wrong one is told, quick or not
    if args.quick:  # what is said beside it holds
        args = dataclasses.replace(args, **{n: v for n, v in QUICK.items() if not said(argv, f"--{n}")})
    protections, sweep = _checked(args)
    with where.claim(args) as out:
        return work(args, protections, sweep, out, shlex.join(["pplleak", "defend", *argv]))


def work(args: Any, protections: Sequence[Protection], sweep: Sweep, out: Path, command: str) -> int:
    """The trainings and attacks that are missing in a folder, and its tables and picture; the exit code."""
    from pplleak.studies.defend import defend, leaderboard
    from pplleak.studies.defend import report as defend_report

    table = defend.images(out / "defences_images.csv")
    runs.settle(out / "defend.json", sweep.settings_in_common, "a sweep")
    whole = True
    done = {table.about(r) for r in table.read()}
    indices = range(args.index, args.index + args.count * args.batch_size, args.batch_size)
    jobs = defend.jobs(protections, args.steps, indices)
    mine = runs.shard(protections, args.shard)  # each is trained by one shard
    try:
        train = functools.partial(defend.train, sweep, steps=args.steps)
        with runs.workers(args.workers, args.ray) as executor:
            for trained in _shown("trainings", runs.spread(train, mine, executor), len(mine)):
                if not trained:
                    raise KeyboardInterrupt
            left = [j for j in jobs if j.protection in mine and not defend.keys(sweep, j) <= done]
            attacks = runs.spread(functools.partial(defend.run, sweep), left, executor)
            for found in _shown("gradients", attacks, len(left)):
                table.add(found)
    except KeyboardInterrupt:
        whole = False
    asked = {key: n for n, j in enumerate(jobs) for key in defend.keys(sweep, j)}  # processes end in any order
    rows = sorted((r for r in table.read() if table.about(r) in asked), key=lambda r: asked[table.about(r)])
    cells = defend.cells(sweep, rows, args.delta)
    console = terminal()
    if cells:
        defend.write(out / "defences.csv", cells)
        runs.figure(out / "defences.png", defend_report.picture(cells), dpi=150)
        board = leaderboard.board(cells)
        defend.write(out / "leaderboard.csv", board, leaderboard.BOARD)
        runs.figure(out / leaderboard.PICTURE, leaderboard.picture(board), dpi=150)
        runs.text(out / "leaderboard.html", leaderboard.page(board, command))
        console.print(defend_report.table(cells))
    files = "leaderboard.html, .csv, .png; defences.csv, .png, defences_images.csv, training/"
    written = f"written to {out}/: {files}" if cells else ""
    kept = "" if whole else f"interrupted: {len(rows)} of {len(asked)} attacks kept, the same command goes on"
    console.print("; ".join(filter(None, (kept, written))), highlight=False, soft_wrap=True)
    return 0 if whole else 130


def _checked(args: Any) -> tuple[list[Protection], Sweep]:
    """The defences and what their attacks have in common; every mistake is told before the work."""
    from pplleak import data
    from pplleak.cli import _arguments as arguments
    from pplleak.federation import rounds
    from pplleak.federation.protection import Protection
    from pplleak.federation.rounds import Federation
    from pplleak.studies.defend import defend
    from pplleak.studies.defend.defend import Sweep

    rounds.in_order(args.steps)
    require_positive(count=args.count, workers=args.workers, classic_steps=args.classic_steps, delta=args.delta)
    protections = [Protection.parse(text) for text in args.defences]
    for p in protections:
        programs.locate("models", defend.adversaries(p.name).knowing)
    if len({str(p) for p in protections}) < len(protections):
        raise BadInput("--defences names one twice")
    data.private(args.data, args.data_root).batch(args.index, args.count * args.batch_size)
    federation = Federation(args.clients, args.participants, args.train_batch_size, args.lr)
    sweep = Sweep(
        args.out, args.data, args.data_root, Named(args.network, options(args, "network")), federation,
        arguments.local(args), args.batch_size, args.classic_steps, args.inference, options(args, "inference"),
        args.surrogate, args.seed,
    )  # fmt: skip
    return protections, defend.checked(sweep, protections)


def _shown(label: str, results: Iterator[Any], total: int) -> Iterator[Any]:
    """The results, with a bar that counts them."""
    yield from (result for _, result in zip(bar(label, total), itertools.islice(results, total), strict=True))
