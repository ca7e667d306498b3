"""List the models, inferences, priors, channels, defences, networks and data with what each one is."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Literal

from pplleak import folders, programs, signatures
from pplleak.cli import _model_table as model_table
from pplleak.cli import _named as named
from pplleak.cli._options import parse


@dataclasses.dataclass(frozen=True)
class Ls:
    form: Literal["list", "markdown"] = "list"
    """markdown: the table of the models, with p(x), p(g | x, y), source and optimiser of each."""


def run(argv: Sequence[str]) -> int:
    args = parse(Ls, "ls", argv)
    if args.form == "markdown":
        print(model_table.markdown())
        return 0
    listed = {
        "models (--model)": programs.names("models"),
        "inferences (--inference)": programs.names("inference"),
        "priors (--prior)": folders.names(named.PRIORS, "prior"),
        "channels (--channel)": folders.names(named.CHANNELS),
        "defences (--defence)": folders.names(named.DEFENCES),
        "networks (--network)": {n: signatures.summary(*place) for n, place in sorted(named.networks().items())},
        "data (--data)": folders.names(named.DATA, "private"),
    }
    width = max(len(name) for names in listed.values() for name in names)
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for title, names in listed.items():
        print(f"{bold}{title}{plain}")
        for name, line in names.items():
            print(f"  {name:<{width}} {line}")
    return 0
