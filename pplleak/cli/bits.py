"""How much was leaked: the mutual information of inputs and gradient, in bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplleak import runs
from pplleak.cli._options import PriorName, Victim, groups, options, parse
from pplleak.errors import BadInput
from pplleak.programs import MODEL
from pplleak.progress import bar, terminal


@dataclasses.dataclass(frozen=True)
class Bits(Victim):
    model: str = MODEL
    """What the adversary believes, and what inputs and gradients are drawn from: a name (`pplleak ls`) or ./FILE.py."""
    prior: PriorName = ""
    inference: str = "laplace"
    """What finds the evidence p(g) (laplace, svi, smc or hmc); its settings are --inference.NAME."""
    by_layer: bool = False
    """What each layer tells alone, beside all of them together: an attack for each layer of each draw."""
    count: int = 50
    """Inputs and gradients that are drawn from the model; --index is not used."""
    out: Path = Path("bits")
    """Folder for bits.csv and bits.json, or layers.csv, .json and .png; a run with the same settings goes on there."""


def run(argv: Sequence[str]) -> int:
    args = parse(Bits, "bits", argv, groups(Bits, argv, "network", "channel", "defence", "model", "inference"))
    if args.count < 1:
        raise BadInput(f"--count must be at least 1, not {args.count}")
    with runs.claim(args.out) as out:
        return work(args, out)


def work(args: Any, out: Path) -> int:
    """The draws that are missing in a folder, and their table; the exit code."""
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.bits import bits, layers

    base = arguments.spare_threads(arguments.observed(args, 0))
    pixels = math.prod(base.client.input_shape) * args.batch_size
    rows = (layers if args.by_layer else bits).measure(
        base,
        args.model,
        args.inference,
        args.count,
        out,
        made_with=runs.settings(args, leaving=("index", "count", "out")),
        beliefs=arguments.beliefs(args),
        settings=options(args, "inference"),
        seed=args.seed,
        progress=bar,
    )
    console = terminal()
    if args.by_layer:
        console.print(layers.table(rows, pixels))
        each, files = len(layers.parts(base.client)), "layers.csv, layers.json, layers.png"
    else:
        console.print(bits.table(rows, args.model, args.inference, pixels))
        each, files = 1, "bits.csv, bits.json"
    complete = len(rows) == args.count * each
    kept = "" if complete else f"interrupted: {len(rows)} attacks kept, the same command goes on; "
    console.print(f"{kept}written to {out}/: {files}", highlight=False, soft_wrap=True)
    return 0 if complete else 130
