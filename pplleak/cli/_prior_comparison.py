"""Which prior predicts images best: `pplleak prior compare`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pplleak import runs
from pplleak.cli import _named as named
from pplleak.cli._options import RECORDS, DataName, parse
from pplleak.cli._prior_picture import picture
from pplleak.errors import BadInput
from pplleak.progress import bar, terminal

if TYPE_CHECKING:
    from torch import Tensor

    from pplleak.settings import Named


UNFIT = r"[^\w.=,-]"  # for the name of a file
PRIORS = f"Some of {named.listed(named.priors())}, with settings or without: gaussian,ppca:rank=16 (default: all)."


@dataclasses.dataclass(frozen=True)
class Compare:
    """Which prior predicts the public half of the data best? Each is fitted to nine tenths of the images, and judged by
    its log-likelihood on the rest (at most 1000). The same command goes on."""

    priors: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help=PRIORS)] = ""
    data: DataName = "digits"
    data_root: Path | None = None
    """Folder that holds MNIST/raw or cifar10/ (default: $PPLLEAK_DATA_ROOT, else ./data)."""
    out: Path = Path("priors-compared")
    seed: int = 0
    """Of the choice of the held-out images."""


def compare(argv: Sequence[str]) -> int:
    """Held-out log-likelihoods of priors, the best one first."""
    args = parse(Compare, "prior compare", argv, description=Compare.__doc__)

    from pplleak import data, priors
    from pplleak.priors import _store as store
    from pplleak.settings import Named

    asked = Named.several(args.priors) if args.priors else [Named(name) for name in priors.names() if name != RECORDS]
    for prior in asked:
        priors.check(prior)
    public = data.public(args.data, args.data_root)
    images = public.x
    if len(images) < 4:
        raise BadInput(f"priors are compared on at least 4 public images, not {len(images)}")
    train, held_out = store.split(images, args.seed)
    labels, _ = store.split(public.y, args.seed)  # in the same order
    with runs.claim(args.out) as out:
        runs.settle(out / "priors.json", runs.settings(args, leaving=("priors", "out")), "a comparison")
        return _compared(asked, train, labels, held_out, out)


def _compared(asked: Sequence[Named], train: Tensor, labels: Tensor, held_out: Tensor, out: Path) -> int:
    """What is missing of a comparison, its table and its picture."""
    from rich.table import Table

    from pplleak.priors import _comparison as comparison
    from pplleak.priors.gaussian import fit_gaussian

    base, pixels = fit_gaussian(train).log_prob(held_out), math.prod(train.shape[1:])
    kept = runs.Rows(out / "priors.csv", comparison.COLUMNS, ("prior",))
    rows = kept.read()
    for prior in asked:
        if str(prior) not in {r["prior"] for r in rows}:
            found = comparison.score(prior, train, held_out, labels, progress=bar)
            rows = kept.add([comparison.row(found, base, pixels)])
            if found.drawn is not None:
                shown = {"images that no prior has seen": held_out[:16], f"draws of {prior}": found.drawn}
                runs.figure(out / f"{re.sub(UNFIT, '-', str(prior))}.png", picture(shown), dpi=110)
    table = Table("prior", "nats an image", "bits a dimension", "ahead of the Gaussian", "seconds",
                  title=f"{len(held_out)} images that no prior has seen, {len(train)} that each was fitted to",
                  title_justify="left")  # fmt: skip
    for row in comparison.best([r for r in rows if r["prior"] in set(map(str, asked))]):
        table.add_row(row["prior"], *comparison.said(row), f"{row['seconds']:.1f}")
    console = terminal()
    console.print(table)
    console.print(f"written to {out}/: priors.csv, and draws of each", highlight=False)
    return 0
