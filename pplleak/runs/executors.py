"""Where work runs: here, in processes of this machine, or on a Ray cluster; and what is spread over it.

    with runs.workers(4) as executor:                   # or runs.workers(cluster="auto")
        for result in runs.spread(attack, jobs, executor): ...

An executor has one method, `submit(function, task)`, which gives a future with `add_done_callback`, `result` and
`cancel` as in `concurrent.futures`. Dask's client is one as it is. Functions and tasks travel by pickle there, and a
worker writes nothing: results come back, and the caller keeps them. A worker that is killed takes no work with it: its
task is done by another, and only a task that has lost `TRIES` workers is given up, when all the others have ended.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pplleak.errors import BadInput

TRIES = 3  # workers that a task may lose before it is given up


class Executor(Protocol):
    """Whatever runs a function elsewhere."""

    def submit(self, function: Callable[[Any], Any], task: Any, /) -> Any:
        """The future of function(task)."""


class Workers(Executor, Protocol):
    """An executor that says how many tasks it runs at once."""

    @property
    def count(self) -> int: ...


class WorkerLost(BadInput):
    """A task whose workers were killed, `TRIES` of them."""

    def __init__(self) -> None:
        super().__init__(
            f"a worker process was killed, and so were those that took its work over ({TRIES} in all), perhaps for "
            "want of memory: take fewer of them; what was finished is kept"
        )


def spread[Task, Result](
    function: Callable[[Task], Result], tasks: Iterable[Task], executor: Executor, ahead: int | None = None
) -> Iterator[Result]:
    """function(task) for every task, as they finish. Whoever stops listening cancels what has not begun.

    Args:
        ahead: how many tasks are taken from `tasks` before a result is back, where the next one depends on what is
            known then; all of them if not given.

    Raises:
        WorkerLost: a task was given up; told when all the others have ended.
        Exception: what the function raised, where its result would have come.
    """
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    waiting, coming, lost = set[Any](), iter(tasks), 0
    try:
        while True:
            for task in itertools.islice(coming, None if ahead is None else ahead - len(waiting)):
                future = executor.submit(function, task)
                waiting.add(future)
                future.add_done_callback(finished.put)
            if not waiting:
                break
            waiting.remove(future := finished.get())
            try:
                result = future.result()
            except WorkerLost:
                lost += 1
                continue
            yield result
    finally:
        for future in waiting:
            future.cancel()
    if lost:
        raise WorkerLost


# -- here ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Later:
    """A future that is computed when it is asked for: results come in the order of their tasks, one at a time."""

    work: Callable[[], Any]

    def add_done_callback(self, function: Callable[[_Later], object]) -> None:
        function(self)

    def result(self) -> Any:
        return self.work()

    def cancel(self) -> bool:
        return True


class _Serial:
    count = 1

    def submit(self, function: Callable[[Any], Any], task: Any, /) -> _Later:
        return _Later(lambda: function(task))


@contextlib.contextmanager
def serial() -> Iterator[Workers]:
    """This process, a task after the other, each when its result is asked for."""
    yield _Serial()


def shard[Job](jobs: Sequence[Job], which: str) -> list[Job]:
    """The i-th of n parts of the jobs, `which` being i/n: every n-th from the i-th on. All of them for "".

    Raises:
        BadInput: that is no i/n with 1 ≤ i ≤ n.
    """
    if not which:
        return list(jobs)
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", which)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise BadInput(f"a shard is i/n, the i-th of n parts: 1/8, 2/8, … 8/8; not {which}")
    return list(jobs[int(found[1]) - 1 :: int(found[2])])
