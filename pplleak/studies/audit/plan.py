"""What is audited; which attack is next, and for how long: a share of the time that is left when a worker is free."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pplleak.errors import BadInput, printable
from pplleak.studies.audit.clock import share

Key = tuple[Any, ...]  # an observation's name, what it is shared behind anew, an attack


@dataclass(frozen=True)
class Item:
    """An observation file, the name it is called by, and the private batch behind it where the auditor has it.

    behind: the protection that the private batch is shared behind anew, in place of what the file holds.
    """

    name: str
    path: Path
    truth: Path | None
    behind: str = ""


@dataclass(frozen=True)
class Job:
    """One attack on one observation, and the seconds that it has."""

    item: Item
    attack: str
    seconds: float


def items(paths: Sequence[Path], truth: Path | None) -> list[Item]:
    """The observations that files and folders hold: FILE, or every .safetensors file directly in FOLDER.

    Args:
        truth: the folder of private batches, called as their observations are; None: the auditor has none.

    Raises:
        BadInput: a path is not there, a folder holds none, two are of one name, or no private batch is of any's name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        files = sorted(path.glob("*.safetensors"), key=_order) if path.is_dir() else [path]
        if not files:
            raise BadInput(f"{printable(path)} holds no observation: such a file ends in .safetensors")
        for file in files:
            if not file.is_file():
                raise BadInput(f"no file {printable(file)}")
            if found.setdefault(file.stem, file) != file:
                raise BadInput(f"two observations are called '{printable(file.stem)}': rename one")
    made = []
    for name, file in found.items():
        kept = None if truth is None else truth / file.name
        made.append(Item(name, file, kept if kept is not None and kept.is_file() else None))
    if truth is not None and not any(i.truth for i in made):
        raise BadInput(f"{printable(truth)} holds no private batch of any observation: they are called as those are")
    return made


def _order(path: Path) -> list[tuple[int, str]]:
    """Names in the order that people count in: round-2 before round-10."""
    return [(int(w), "") if w.isdigit() else (-1, w) for w in re.split(r"(\d+)", path.stem)]


@dataclass
class Plan:
    """The jobs of an audit, in their order, and the time that they have.

    An attack's share of what is left is in proportion to its cost among those that are to come, and what it does not
    use goes to the next ones. Of several workers each has the whole budget, but nothing goes on after its end.

    budget   seconds, on the clock on the wall
    jobs     by their keys: the observation, the attack, its cost
    spent    seconds that the finished ones took, or none
    running  seconds that were given to those under way
    """

    budget: float
    jobs: Mapping[Key, tuple[Item, str, float]]
    spent: dict[Key, float]
    running: dict[Key, float] = field(default_factory=dict)

    def missing(self) -> list[tuple[Item, str, float]]:
        """What nobody has begun."""
        return [job for key, job in self.jobs.items() if key not in self.spent and key not in self.running]

    def take(self, workers: int) -> Iterator[Job]:
        """A job after the other, each when a worker asks for it."""
        end = time.monotonic() + self.budget - sum(self.spent.values()) / workers
        for item, name, cost in self.missing():
            coming = sum(c for _, _, c in self.missing())
            left = workers * self.budget - sum(self.spent.values()) - sum(self.running.values())
            seconds = share(left, cost, coming)
            if workers > 1:  # what one had left over is no time on the clock for another
                seconds = min(seconds, max(0.0, end - time.monotonic()))
            self.running[item.name, item.behind, name] = seconds
            yield Job(item, name, seconds)

    def ended(self, row: Mapping[str, Any]) -> None:
        """A job has a row."""
        key = row["name"], row.get("behind", ""), row["attack"]
        self.running.pop(key, None)
        self.spent[key] = row["seconds"]
