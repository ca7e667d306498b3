"""Progress of long work: a bar with an estimate on the terminal, nothing elsewhere.

An inference takes `progress`, a function (label, total) -> an iterator over range(total):

    for step in progress("sampling", draws): ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

ProgressBar = Callable[[str, int], Iterator[int]]


def terminal() -> Console:
    """Where a command prints. Words are shown as they are: a path may hold what rich would read as its markup."""
    from rich.console import Console

    return Console(markup=False)


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
