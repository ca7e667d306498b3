"""Train the client's network on the public half of the data, with or without a defence, and keep checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from pplleak import signatures
from pplleak.cli import _named as named
from pplleak.cli._local import UNSAID, LocalFlags
from pplleak.cli._options import NONE, DataName, NetworkName, Precision, groups, options, parse
from pplleak.errors import BadInput
from pplleak.progress import bar, terminal
from pplleak.settings import Named

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT = signatures.constants("pplleak.federation.rounds", "Federation")
CHANNELS = named.listed((NONE, *named.channels()))
CHANNEL = f"What every client's update goes through: {CHANNELS}; its settings are --channel.NAME."
DEFENCES = named.listed((NONE, *named.defences()))
DEFENCE = f"What the client does to its gradient or its network first: {DEFENCES}; its settings are --defence.NAME."


@dataclasses.dataclass(frozen=True)
class Train:
    tables: ClassVar[bool] = True
    texts: ClassVar[bool] = True
    data: DataName = "digits"
    data_root: Path | None = None
    """Folder that holds MNIST/raw or cifar10/ (default: $PPLLEAK_DATA_ROOT, else ./data)."""
    network: NetworkName = "mlp"
    channel: Annotated[str, tyro.conf.arg(help=CHANNEL)] = NONE
    sigma: float | None = None
    """Noise of the channel: standard deviation on each entry. None means 0.1, if it has noise."""
    defence: Annotated[str, tyro.conf.arg(help=DEFENCE)] = NONE
    checkpoint: Path | None = None
    """Weights to start from: a safetensors file (default: weights drawn from --seed)."""
    steps: int = 1000
    """Steps of the server; with --local-lr, rounds."""
    checkpoints: tuple[int, ...] = ()
    """Steps whose weights are kept (default: 0 10 20 50 100 200 500 1000 … and the last)."""
    clients: int = DEFAULT["clients"]
    """The training examples are dealt out to so many clients."""
    participants: int = DEFAULT["participants"]
    """Clients that are asked in each step, taking turns."""
    batch_size: int = DEFAULT["batch_size"]
    """Examples that each of them takes."""
    lr: float = DEFAULT["lr"]
    """Learning rate of the server's step along gradients."""
    local: LocalFlags = UNSAID
    delta: float = DEFAULT["delta"]
    """δ of the (ε, δ)-differential privacy of --channel dpsgd."""
    seed: int = 0
    """Of the weights, the batches and the noise: one seed, one result."""
    dtype: Precision = "float32"
    """Precision of the network."""
    out: Path = Path("train")
    """Folder for step-N.safetensors, log.csv and train.json; a run with the same settings goes on there."""


def run(argv: Sequence[str]) -> int:
    args = parse(Train, "train", argv, groups(Train, argv, "network", "channel", "defence"))

    from pplleak import data
    from pplleak.cli import _arguments as arguments
    from pplleak.federation import rounds
    from pplleak.federation.rounds import Federation
    from pplleak.federation.scenario import Scenario, client_of

    protected, network = arguments.protection(args), Named(args.network, options(args, "network"))
    federation = Federation(args.clients, args.participants, args.batch_size, args.lr, args.delta)
    if args.dtype not in ("float32", "float64"):
        raise BadInput(f"training rounds run in float32 or float64, not in {args.dtype}")
    if args.steps < 1:
        raise BadInput(f"--steps must be at least 1, not {args.steps}")
    checkpoints = args.checkpoints or rounds.milestones(args.steps)
    rounds.in_order(checkpoints)
    if checkpoints[-1] > args.steps:
        raise BadInput(f"--checkpoints ends at step {checkpoints[-1]}, after the last of --steps {args.steps}")
    of = arguments.data_of(args)
    test = data.private(of, args.data_root)
    client = client_of(Scenario(
        of, args.data_root, network=network, checkpoint=args.checkpoint, local=arguments.local(args),
        protection=protected, seed=args.seed, dtype=args.dtype,
    ))  # fmt: skip
    images = data.public(of, args.data_root)
    rounds.require(client, images, federation, protected)
    settings = rounds.record(
        of, network, federation, protected, local=client.local, seed=args.seed, dtype=args.dtype,
        checkpoint=args.checkpoint,
    )  # fmt: skip
    last = checkpoints if checkpoints[-1] == args.steps else (*checkpoints, args.steps)
    rows, whole = rounds.train(
        client, images, test, federation, protected, args.out,
        checkpoints=last, settings=settings, seed=args.seed, progress=bar,
    )  # fmt: skip
    console = terminal()
    console.print(table(rows, protected.name))
    written = f"written to {args.out}/: log.csv, train.json and step-N.safetensors, each for --checkpoint"
    kept = f"interrupted after step {rows[-1]['step']}, the same command goes on; " if rows and not whole else ""
    console.print(kept + written, highlight=False, soft_wrap=True)
    return 0 if whole else 130


def table(rows: Sequence[dict[str, Any]], name: str) -> Table:
    """Accuracy, and for DP-SGD ε, at every checkpoint."""
    from rich.table import Table

    made = Table(title=f"training, defence {name}", title_justify="left")
    private = any(r["epsilon"] is not None for r in rows)
    for column in ["step", "accuracy", "loss", *(["ε"] if private else []), "CPU s"]:
        made.add_column(column, justify="right")
    for r in rows:
        spent = [f"{r['epsilon']:.3g}"] if private else []
        made.add_row(str(r["step"]), f"{r['accuracy']:.1%}", f"{r['loss']:.3f}", *spent, f"{r['cpu_seconds']:.1f}")
    return made
