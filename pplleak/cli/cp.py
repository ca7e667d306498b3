"""Copy a model or inference file, to start your own: `pplleak cp dlg mine.py`, then --model ./mine.py."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import tyro

from pplleak import programs, runs
from pplleak.cli._options import parse
from pplleak.errors import BadInput, unknown


@dataclasses.dataclass(frozen=True)
class Cp:
    name: tyro.conf.Positional[str]
    """Of a file that `pplleak ls` lists."""
    destination: tyro.conf.Positional[Path]
    """A file ending in .py, or a folder."""


def run(argv: Sequence[str]) -> int:
    args = parse(Cp, "cp", argv)
    print(f"copied to {copy(args.name, args.destination)}")
    return 0


def copy(name: str, destination: str | Path) -> Path:
    """Copy a model or inference file, to start one's own; raises BadInput rather than overwrite."""
    kinds: list[programs.Kind] = [k for k in programs.ENTRY if name in programs.names(k)]
    if not kinds:
        raise unknown("file", name, [n for k in programs.ENTRY for n in programs.names(k)])
    destination = Path(destination)
    target = destination / f"{name}.py" if destination.is_dir() else destination
    if target.suffix != ".py":
        raise BadInput(
            f"{target} must end in .py, so that it is known for a file where a model or an inference is named"
        )
    if target.exists():
        raise BadInput(f"{target} exists already: give another name, nothing was overwritten")
    runs.write(target, lambda part: shutil.copyfile(programs.locate(kinds[0], name), part))
    return target
