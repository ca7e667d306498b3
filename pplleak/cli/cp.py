"""Copy a model or inference file, to start your own: `pplleak cp dlg mine.py`, then --model ./mine.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from pplleak import programs
from pplleak.cli._options import parse


@dataclasses.dataclass(frozen=True)
class Cp:
    name: tyro.conf.Positional[str]
    """Of a file that `pplleak ls` lists."""
    destination: tyro.conf.Positional[Path]
    """A file ending in .py, or a folder."""


def run(argv: Sequence[str]) -> int:
    args = parse(Cp, "cp", argv)
    print(f"copied to {programs.copy(args.name, args.destination)}")
    return 0
