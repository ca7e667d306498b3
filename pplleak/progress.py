"""Progress of long work: a bar with an estimate on the terminal, nothing elsewhere.

An inference takes `progress`, a function (label, total) -> an iterator over range(total):

    for step in progress("sampling", draws): ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ProgressBar = Callable[[str, int], Iterator[int]]


def silent(label: str, total: int) -> Iterator[int]:
    """No bar: for tests and libraries."""
    return iter(range(total))


def bar(label: str, total: int) -> Iterator[int]:
    """A bar on standard error; it disappears into one line when its work is done or interrupted."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=5) as shown:
        yield from shown.track(range(total), description=label)


def keep(chain: Iterator[dict[str, Tensor]], draws: int, progress: ProgressBar) -> tuple[dict[str, Tensor], list[str]]:
    """The next `draws` draws of a Markov chain, under "sampling"; Ctrl-C keeps those that are finished.

    Args:
        chain: yields one draw at a time: name -> (chains, …).

    Returns: name -> (chains, draw, …), and what is to be said of them: that they were interrupted, or nothing.

    Raises:
        KeyboardInterrupt: there is no draw to keep.
    """
    import torch

    kept: list[dict[str, Tensor]] = []
    reasons = []
    try:
        for _ in progress("sampling", draws):
            kept.append(next(chain))
    except KeyboardInterrupt:
        if not kept:
            raise
        reasons.append(f"interrupted: {len(kept)} of {draws} draws a chain were kept")
    return {name: torch.stack([draw[name] for draw in kept], 1) for name in kept[0]}, reasons
